#!/usr/bin/env python3
"""Runs generate, score, plan and inspect as a user's scripts would.

usage: command_test.py PROGRAM MODEL [unittest arguments]
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest

PROGRAM = os.path.realpath(sys.argv[1])
MODEL = sys.argv[2]
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
PROMPT = ["--model", MODEL, "--prompt", "Once upon a time"]


def run(*arguments, ranks=1):
    launcher = [] if ranks == 1 else ["mpirun", "-n", str(ranks)]
    return subprocess.run([*launcher, PROGRAM, *arguments], capture_output=True, text=True,
                          timeout=120, env=ENVIRONMENT)


def answer(*arguments, ranks=1):
    done = run(*arguments, "--json", ranks=ranks)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


class GenerateTest(unittest.TestCase):
    def test_the_same_for_any_number_of_ranks(self):
        flags = ["generate", *PROMPT, "--max-tokens", "8", "--seed", "7"]
        alone = answer(*flags)
        self.assertEqual(answer(*flags, ranks=3), alone)
        self.assertEqual(set(alone), {"text", "ids", "logprobs", "finish_reason"})
        self.assertEqual((len(alone["ids"]), len(alone["logprobs"])), (8, 8))
        self.assertEqual(alone["finish_reason"], "length")

    def test_text_and_json_agree_and_progress_is_elsewhere(self):
        flags = ["generate", *PROMPT, "--max-tokens", "8", "--temperature", "0"]
        done = run(*flags)
        self.assertEqual(done.stdout, answer(*flags)["text"] + "\n")
        self.assertIn("loaded", done.stderr)

    def test_a_random_seed_is_told_and_repeats(self):
        first = run("generate", *PROMPT, "--max-tokens", "8")
        seed = first.stderr.strip().rsplit("seed ", 1)[1]
        again = run("generate", *PROMPT, "--max-tokens", "8", "--seed", seed)
        self.assertEqual(again.stdout, first.stdout)

    def test_ends_before_a_stop_string(self):
        flags = ["generate", *PROMPT, "--max-tokens", "8", "--temperature", "0"]
        text = answer(*flags)["text"]
        stop = text[len(text) // 2:][:3]
        stopped = answer(*flags, "--stop", stop, "--stop", "never said")
        self.assertEqual(stopped["text"], text[:text.index(stop)])
        self.assertEqual(stopped["finish_reason"], "stop")
        self.assertLess(len(stopped["ids"]), 8)

    def assert_refused(self, status, culprit, *arguments, ranks=1):
        done = run(*arguments, ranks=ranks)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertEqual(done.stdout, "")
        ours = [line for line in done.stderr.splitlines() if line.startswith("jubal: ")]
        self.assertEqual(len(ours), 1, done.stderr)
        self.assertIn(culprit, ours[0])

    def test_refuses_with_one_sentence(self):
        for ranks in (1, 3):
            with self.subTest(ranks=ranks):
                self.assert_refused(64, "--tempo", "generate", *PROMPT, "--tempo", "1", ranks=ranks)
                self.assert_refused(64, "temperature", "generate", *PROMPT, "--temperature", "-1",
                                    ranks=ranks)
                self.assert_refused(64, "prompt is empty", "generate", "--model", MODEL,
                                    "--prompt", "", ranks=ranks)
                self.assert_refused(64, "prompt[1]", "generate", "--model", MODEL,
                                    "--prompt-ids", "1,9999999", ranks=ranks)
                self.assert_refused(64, "max_tokens", "generate", *PROMPT, "--max-tokens",
                                    "1000000", ranks=ranks)
                self.assert_refused(66, "/no/such/model", "generate", "--model", "/no/such/model",
                                    "--prompt", "x", ranks=ranks)
                self.assert_refused(78, "--kv-memory", "generate", *PROMPT, "--kv-memory", "1",
                                    ranks=ranks)

    def test_says_that_the_kv_memory_is_the_limit(self):
        page = answer("plan", "--model", MODEL, "--kv-memory", "1MB")
        limit = page["context"]
        self.assert_refused(64, f"{limit}", "generate", *PROMPT, "--kv-memory", "1MB",
                            "--max-tokens", str(limit))
        self.assert_refused(64, "raise --kv-memory", "generate", *PROMPT, "--kv-memory", "1MB",
                            "--max-tokens", str(limit))

    def test_ids_need_no_tokenizer_but_text_does(self):
        with tempfile.TemporaryDirectory() as bare:
            for name in ("ckpt-0", "config.json"):
                os.symlink(os.path.realpath(os.path.join(MODEL, name)), os.path.join(bare, name))
            model = ["--model", bare]
            self.assertEqual(answer("generate", *model, "--prompt-ids", "5,17,3", "--max-tokens",
                                    "2")["text"], "")
            self.assert_refused(64, "tokenizer", "generate", *model, "--prompt", "x")
            self.assert_refused(64, "--stop", "generate", *model, "--prompt-ids", "5", "--stop",
                                "x")

    def test_refuses_the_tokenizer_of_a_larger_model(self):
        small = os.path.join(os.path.dirname(__file__), "../data/golden/grok1-12layers")
        with tempfile.TemporaryDirectory() as mixed:
            for folder, name in ((small, "ckpt-0"), (small, "config.json"),
                                 (MODEL, "tokenizer.model")):
                os.symlink(os.path.realpath(os.path.join(folder, name)), os.path.join(mixed, name))
            model = ["--model", mixed]
            for ranks in (1, 3):
                self.assert_refused(65, "another model's", "generate", *model, "--prompt", "x",
                                    ranks=ranks)
            self.assert_refused(65, "another model's", "serve", *model, "--listen", "127.0.0.1:0")


class ScoreTest(unittest.TestCase):
    def test_scores_what_generate_drew(self):
        ids = [5, 17, 3]
        drawn = answer("generate", "--model", MODEL, "--prompt-ids", "5,17,3", "--max-tokens", "6",
                       "--temperature", "0", "--ignore-eos")
        every = ",".join(map(str, ids + drawn["ids"]))
        score = answer("score", "--model", MODEL, "--ids", every)
        self.assertEqual(score["ids"], ids + drawn["ids"])
        self.assertEqual(score["logprobs"][2:], drawn["logprobs"])
        self.assertEqual(answer("score", "--model", MODEL, "--ids", every, ranks=2), score)

    def test_refuses_texts_that_have_no_score(self):
        with tempfile.NamedTemporaryFile("wb") as file:
            empty = run("score", "--model", MODEL, "--text-file", file.name)
            self.assertEqual(empty.returncode, 64, empty.stderr)
            self.assertIn("at least 2", empty.stderr)
            file.write(b"caf\xe9 au lait")
            file.flush()
            self.assertEqual(run("score", "--model", MODEL, "--text-file", file.name).returncode,
                             65)
        self.assertEqual(run("score", "--model", MODEL, "--text-file", "/no/file").returncode, 66)
        self.assertEqual(run("score", "--model", MODEL, "--text-file", "/").returncode, 66)
        self.assertEqual(run("score", "--model", MODEL, "--text-file", "/dev/zero").returncode, 65)
        self.assertEqual(run("score", "--model", MODEL, "--ids", "5").returncode, 64)


class TablesTest(unittest.TestCase):
    def test_plan(self):
        plan = answer("plan", "--model", "grok-1", "-n", "8", "--device-memory", "80GB")
        self.assertEqual([rank["rank"] for rank in plan["per_rank"]], list(range(8)))
        for rank in plan["per_rank"]:
            self.assertEqual(sum(rank["lines"].values()), rank["total"])
            self.assertEqual(rank["weights"] + rank["kv"] + rank["activations"] + rank["segments"],
                             rank["total"])
        self.assertEqual(sum(rank["total"] for rank in plan["per_rank"]), plan["total_bytes"])
        done = run("plan", "--model", "grok-1", "-n", "2", "--device-memory", "80GB")
        self.assertEqual((done.returncode, done.stdout), (78, ""))
        self.assertIn("-n 8", done.stderr)
        self.assertIn("total", run("plan", "--model", MODEL).stdout)

    def test_inspect(self):
        table = answer("inspect", "--model", MODEL, "-n", "3")
        self.assertEqual([rank["chunks"] for rank in table["per_rank"]], [[0, 3], [3, 6], [6, 8]])
        names = [tensor["name"] for tensor in table["tensors"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertIn("tensor00000_000", run("inspect", "--model", MODEL).stdout)


class PackTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.packed = os.path.join(self.folder.name, "packed")

    def pack(self, *flags):
        done = run("pack", "--model", MODEL, "--output", self.packed, *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("packed", done.stderr)
        return os.path.join(self.packed, "weights.jubalpack")

    def assert_refused(self, status, culprit, *arguments):
        done = run(*arguments)
        self.assertEqual((done.returncode, done.stdout), (status, ""), done.stderr)
        self.assertIn(culprit, done.stderr.splitlines()[-1])

    def test_gives_the_answers_of_the_checkpoint(self):
        self.pack()
        flags = ["--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0"]
        expected = answer("generate", "--model", MODEL, *flags)
        done = run("generate", "--model", self.packed, *flags, "--json")
        self.assertEqual(json.loads(done.stdout), expected)
        self.assertIn("mapped", done.stderr)
        self.assertEqual(answer("generate", "--model", self.packed, *flags, ranks=3), expected)

    def test_is_listed_and_planned(self):
        self.pack("--weights", "int4")
        table = answer("inspect", "--model", self.packed, "--verify")
        types = {tensor["role"]: tensor["dtype"] for tensor in table["tensors"]}
        self.assertEqual(types["layer 0 expert_gate"], "int4 / 64 rows")
        self.assertEqual(types["embedding"], "int8 / 256 rows")
        self.assertEqual(types["layer 0 router"], "f32")
        plan = answer("plan", "--model", self.packed, "-n", "3")
        for rank in plan["per_rank"]:
            self.assertEqual(rank["own"], rank["kv"] + rank["activations"] + rank["segments"])
        self.assertIn("page cache", run("plan", "--model", self.packed).stdout)

    def test_refuses_what_is_damaged_or_in_the_way(self):
        file = self.pack()
        self.assert_refused(64, "is there already", "pack", "--model", MODEL, "--output",
                            self.packed)
        self.assert_refused(64, "packed already", "pack", "--model", self.packed, "--output",
                            os.path.join(self.folder.name, "again"))
        self.assert_refused(64, "--verify", "inspect", "--model", MODEL, "--verify")
        ids = ["--ids", "5,17,3"]
        with open(file, "r+b") as pack:
            pack.seek(-1, os.SEEK_END)  # of the final norm
            last = pack.read(1)[0]
            pack.seek(-1, os.SEEK_END)
            pack.write(bytes([last ^ 1]))
        self.assert_refused(65, "final_norm", "inspect", "--model", self.packed, "--verify")
        os.truncate(file, os.path.getsize(file) - 1)
        self.assert_refused(65, file, "score", "--model", self.packed, *ids)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
