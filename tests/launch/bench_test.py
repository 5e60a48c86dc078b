#!/usr/bin/env python3
"""Runs bench as a user's scripts would, on models so small that the figures mean nothing.

usage: bench_test.py PROGRAM MODEL [unittest arguments]
"""

import csv
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
import unittest

PROGRAM = os.path.realpath(sys.argv[1])
MODEL = sys.argv[2]
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
TINY = ["--synthetic", "hidden=64,heads=8,kv_heads=4,head_dim=16,experts=4,top_k=2,"
                       "expert_hidden=96,layers=2,vocab=300"]
SHORT = [*TINY, "--prefill", "8", "--decode", "2", "--batch", "1,3"]
QUICK = [*SHORT, "--threads", "1"]  # threads that wait for a core take long over nothing


def run(*arguments, ranks=None, environment=None):
    launcher = ["mpirun", "-n", str(ranks)] if ranks else []
    return subprocess.run([*launcher, PROGRAM, "bench", *arguments], capture_output=True,
                          text=True, timeout=120, env={**ENVIRONMENT, **(environment or {})})


def lines(*arguments, ranks=None, environment=None):
    done = run(*arguments, "--json", ranks=ranks, environment=environment)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def hashes(rows):
    return {(row["test"], row["batch"], row["depth"]): row["tokens_hash"] for row in rows}


class LinesTest(unittest.TestCase):
    def test_each_line_has_everything(self):
        rows = lines(*QUICK, "--depth", "0,40", "--kv", "int8", "--isa", "portable")
        self.assertEqual([(row["test"], row["batch"], row["depth"]) for row in rows],
                         [("pp8", 1, 0), ("tg2", 1, 0), ("tg2", 3, 0),
                          ("tg2", 1, 40), ("tg2", 3, 40)])
        for row in rows:
            for key in ("tokens_per_second", "bytes_per_step", "read_bandwidth",
                        "bandwidth_ratio", "compute_ratio", "peak"):
                self.assertIsInstance(row[key], float, key)
                self.assertGreater(row[key], 0, key)
            self.assertEqual((row["ranks"], row["threads"], row["exchange"], row["isa"]),
                             (1, 1, "replicated", "portable"))
            self.assertEqual((row["weights"], row["kv"]), ("int8", "int8"))
            self.assertIn("tensor 1", row["plan"])

    def test_the_same_tokens_on_every_plan(self):
        alone = hashes(lines(*QUICK, "--depth", "40"))
        self.assertEqual(len(set(alone.values())), 3)
        for ranks, flags in ((2, []), (4, ["--exchange", "alltoall"]),
                             (8, ["--expert-parallel", "4"]), (2, ["--data-parallel", "2"])):
            with self.subTest(ranks=ranks, flags=flags):
                rows = lines(*QUICK, "--depth", "40", *flags, ranks=ranks)
                self.assertEqual(hashes(rows), alone)
                self.assertEqual({row["ranks"] for row in rows}, {ranks})
        for weights in ("bf16", "int4"):
            with self.subTest(weights=weights):
                flags = [*QUICK, "--depth", "40", "--weights", weights]
                self.assertEqual(hashes(lines(*flags, ranks=2)), hashes(lines(*flags)))

    def test_a_stored_model_and_a_test_left_out(self):
        rows = lines("--model", MODEL, "--threads", "1", "--prefill", "0", "--decode", "2",
                     "--batch", "2")
        self.assertEqual([(row["test"], row["batch"]) for row in rows], [("tg2", 2)])
        rows = lines("--model", MODEL, "--threads", "1", "--prefill", "4", "--decode", "0")
        self.assertEqual([row["test"] for row in rows], ["pp4"])

    def test_tables_and_what_is_said_beside_them(self):
        done = run(*QUICK)
        table = [[cell.strip() for cell in line.strip("|").split("|")]
                 for line in done.stdout.splitlines()]
        self.assertEqual(table[0][:5], ["test", "batch", "depth", "ranks", "tokens/s"])
        self.assertEqual({len(row) for row in table}, {len(table[0])})
        self.assertEqual([row[0] for row in table[2:]], ["pp8", "tg2", "tg2"])
        self.assertTrue(all(cell.strip("-") == ":" for cell in table[1]), table[1])
        self.assertIn("say nothing about memory", done.stderr)
        self.assertIn("1 thread on each rank", done.stderr)

        rows = list(csv.DictReader(io.StringIO(run(*QUICK, "--csv").stdout)))
        self.assertEqual([row["test"] for row in rows], ["pp8", "tg2", "tg2"])
        self.assertEqual(set(rows[0]), set(lines(*QUICK)[0]))
        self.assertIn("replicated", rows[0]["plan"])  # which has a comma


class RefusalTest(unittest.TestCase):
    def assert_refused(self, status, culprit, *arguments, **how):
        done = run(*arguments, **how)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertEqual(done.stdout, "")
        ours = [line for line in done.stderr.splitlines() if line.startswith("jubal: ")]
        self.assertEqual(len(ours), 1, done.stderr)
        self.assertIn(culprit, ours[0])

    def test_refuses_with_one_sentence(self):
        self.assert_refused(64, "needs 8194 positions", *QUICK, "--depth", "8192")
        self.assert_refused(64, "needs 8194 positions", *QUICK, "--depth", "8192",
                            "--scaling", "1,2")
        self.assert_refused(64, "3 KV heads do not divide", "--synthetic", "heads=8,kv_heads=3")
        self.assert_refused(64, "3 ranks", *QUICK, "--scaling", "2,3", "--expert-parallel", "2")
        self.assert_refused(64, "without a launcher", *QUICK, "--scaling", "1", ranks=2)
        self.assert_refused(66, "/no/such/model", "--model", "/no/such/model")

    def test_refuses_a_model_beyond_the_memory(self):
        giant = ["--synthetic", "hidden=65536,expert_hidden=1048576,layers=64"]
        self.assert_refused(78, "of memory", *giant)
        done = run(*giant, "--scaling", "2", "--threads", "2")
        self.assertEqual((done.returncode, done.stdout), (78, ""), done.stderr)
        self.assertIn("of memory", done.stderr)
        self.assertIn("the run on 2 ranks ended with exit status 78", done.stderr)


class ScalingTest(unittest.TestCase):
    def test_compares_numbers_of_ranks(self):
        rows = lines(*SHORT, "--scaling", "1,2", "--exchange", "alltoall", "--threads", "1")
        self.assertEqual([row["ranks"] for row in rows], [1, 1, 1, 2, 2, 2])
        self.assertEqual({row["threads"] for row in rows}, {1})
        self.assertEqual({row["exchange"] for row in rows}, {"alltoall"})
        for one, two in zip(rows[:3], rows[3:]):
            self.assertEqual((one["speedup"], one["efficiency"]), (1, 1))
            speedup = two["tokens_per_second"] / one["tokens_per_second"]
            self.assertAlmostEqual(two["speedup"] / speedup, 1)
            self.assertAlmostEqual(two["efficiency"] / (speedup / 2), 1)
            self.assertEqual(one["tokens_hash"], two["tokens_hash"])

    def test_notices_that_results_differ(self):
        row = {"test": "tg2", "batch": 1, "depth": 0, "tokens_per_second": 1.5, "stddev": 0.0,
               "bytes_per_step": 1.0, "read_bandwidth": 1.0, "bandwidth_ratio": 0.5,
               "compute_ratio": 0.5, "threads": 1}
        with tempfile.TemporaryDirectory() as folder:
            mpirun = os.path.join(folder, "mpirun")  # mpirun -n RANKS …
            with open(mpirun, "w", encoding="utf-8") as file:
                start = json.dumps(row)[:-1].replace('"', '\\"')
                file.write(f'#!/bin/sh\necho "[{start}, \\"ranks\\": $2, '
                           f'\\"tokens_hash\\": \\"$2\\"}}]"\n')
            os.chmod(mpirun, stat.S_IRWXU)
            done = run(*QUICK, "--scaling", "2,4", "--json",
                       environment={"PATH": f"{folder}:{os.environ['PATH']}"})
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(len(json.loads(done.stdout)), 2)
        self.assertIn("drew other tokens on 4 ranks than on 2", done.stderr)

    def test_says_when_there_is_no_mpirun(self):
        done = run(*QUICK, "--scaling", "2", environment={"PATH": "/no/such/folder"})
        self.assertEqual(done.returncode, 69)
        self.assertIn("mpirun cannot be run", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
