#!/usr/bin/env python3
"""Runs the program with --device, on emulated GPUs and where there are none.

usage: device_test.py EMULATED_PROGRAM PROGRAM MODEL [unittest arguments]
"""

import json
import os
import signal
import subprocess
import sys
import unittest

EMULATED = os.path.realpath(sys.argv[1])
PROGRAM = os.path.realpath(sys.argv[2])
MODEL = sys.argv[3]
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
TINY = ["--synthetic", "hidden=64,heads=8,kv_heads=4,head_dim=16,experts=4,top_k=2,"
                       "expert_hidden=96,layers=2,vocab=300",
        "--prefill", "8", "--decode", "2", "--batch", "1,3", "--threads", "1", "--json"]
GENERATE = ["generate", "--model", MODEL, "--prompt-ids", "5,17,3", "--max-tokens", "3",
            "--temperature", "0.9", "--seed", "7", "--kv-memory", "4MiB", "--prefill-chunk", "8",
            "--max-running", "1", "--json"]


def run(program, *arguments, ranks=None):
    launcher = ["mpirun", "-n", str(ranks)] if ranks else []
    return subprocess.run([*launcher, program, *arguments], capture_output=True, text=True,
                          timeout=200, env=ENVIRONMENT)


def result(program, *arguments, ranks=None):
    done = run(program, *arguments, ranks=ranks)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout), done.stderr


class EmulatedGpuTest(unittest.TestCase):
    """Breaks: a GPU gives other tokens than a CPU, or is taken or left without a word."""

    def test_generates_what_a_cpu_generates(self):
        expected, said = result(EMULATED, *GENERATE, "--device", "cpu")
        self.assertNotIn("computing on", said)
        found, said = result(EMULATED, *GENERATE)
        self.assertEqual(found, expected)
        self.assertIn("computing on emulated GPU", said)

    def test_ranks_that_share_a_gpu_draw_what_a_cpu_draws(self):
        expected, _ = result(EMULATED, "bench", *TINY, "--device", "cpu")
        found, said = result(EMULATED, "bench", *TINY, "--device", "cuda", ranks=2)
        self.assertEqual([row["tokens_hash"] for row in found],
                         [row["tokens_hash"] for row in expected])
        self.assertIn("ranks share a GPU", said)
        self.assertEqual({row["device"] for row in found}, {"emulated GPU"})
        self.assertEqual({row["device"] for row in expected}, {"cpu"})
        for row in found:
            for key in ("read_bandwidth", "peak", "bytes_per_second", "operations_per_second",
                        "roofline_ratio"):
                self.assertGreater(row[key], 0, key)

    def test_a_wrong_path_is_one_sentence(self):
        for ranks in (None, 2):
            done = run(EMULATED, "generate", "--model", "/no/such/model", "--prompt", "x",
                       ranks=ranks)
            self.assertEqual(done.returncode, 66, done.stderr)
            self.assertEqual(done.stderr.count("/no/such/model"), 1, done.stderr)

    def test_a_model_too_large_for_the_gpu_is_refused(self):
        done = run(EMULATED, "bench", "--synthetic", "layers=64", "--prefill", "0", "--decode", "1",
                   "--batch", "1", "--device", "cuda")
        self.assertEqual(done.returncode, 78, done.stderr)
        self.assertIn("of GPU memory is needed, but emulated GPU has", done.stderr)


class NoGpuTest(unittest.TestCase):
    """Breaks: who asks for a GPU that is not there gets something else."""

    def test_cuda_without_a_gpu_is_refused(self):
        if os.path.exists("/dev/nvidia0"):
            self.skipTest("there is one")
        done = run(PROGRAM, *GENERATE, "--device", "cuda")
        self.assertEqual(done.returncode, 78, done.stderr)
        self.assertIn("--device cuda", done.stderr)
        self.assertIn("--device cpu", done.stderr)
        self.assertEqual(done.stdout, "")

    def test_without_a_gpu_cpus_compute(self):
        if os.path.exists("/dev/nvidia0"):
            self.skipTest("there is one")
        expected, _ = result(PROGRAM, *GENERATE, "--device", "cpu")
        found, said = result(PROGRAM, *GENERATE)
        self.assertEqual(found, expected)
        self.assertNotIn("computing on", said)


if __name__ == "__main__":
    signal.alarm(280)
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
