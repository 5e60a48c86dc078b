#!/usr/bin/env python3
"""Holds the program against a second implementation: a numpy forward pass of Grok-1, written from xAI's code.

usage: reference_test.py PROGRAM [--true-dimensions]

Writes random checkpoints of odd shapes in xAI's layout (a chunk that is 15 columns wide or holds half a head, a number
of layers whose text order is not their order, a vocabulary that fills no block), scores a sequence of tokens and
continues it, on several plans. With --true-dimensions: one layer of Grok-1's real size (8 GB of files in TMPDIR, 10 GB
of memory), and the memory that the ranks take is held against the plan.

Exits with 77 where numpy is missing.
"""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

try:
    import numpy as np
except ImportError:
    print("numpy is not installed")
    sys.exit(77)

ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1"}
# 15-bit activations err by half a step of 2^-14 of a row's largest value in each product; over a handful of layers the
# log probabilities of such models move by a few 1e-4. A wrong operation moves them by 1e-2 at least.
MEAN_BOUND = 1e-3


class Int8:
    """A quantised weight: int8 [.., K, N] and the upper halves of float32 scales [.., groups, N]."""

    def __init__(self, rng, shape, groups):
        *stack, k, n = shape
        self.weight = np.maximum(np.frombuffer(rng.bytes(int(np.prod(shape))), np.int8), -127).reshape(shape)
        scales = rng.uniform(0.5, 1.5, (*stack, groups, n)).astype(np.float32) / np.float32(73 * k ** 0.5)
        self.scales = (scales.view(np.uint32) >> 16).astype(np.uint16)

    def matrix(self, expert=None):
        """float32 [K, N]"""
        weight, scales = (self.weight, self.scales) if expert is None else (self.weight[expert], self.scales[expert])
        scales = (scales.astype(np.uint32) << 16).view(np.float32)
        grouped = weight.reshape(scales.shape[0], -1, weight.shape[-1]).astype(np.float32)
        return (grouped * scales[:, None, :]).reshape(weight.shape)


def pickled(obj):
    """The pickle (protocol 4) of a float32 array or an Int8, with the opcodes that NumPy 1.x writes."""
    def text(s):
        return b"\x8c" + bytes([len(s)]) + s.encode()

    def name(module, attribute):
        return text(module) + text(attribute) + b"\x93"

    def array(a, dtype):
        shape = b"".join(b"J" + struct.pack("<i", size) for size in a.shape)
        payload = b"\x8e" + struct.pack("<Q", a.nbytes)
        return [name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
                + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + payload, a.tobytes(), b"tb"]

    def plain(code, order):
        return (name("numpy", "dtype") + text(code) + b"\x89\x88\x87R(K\x03" + text(order)
                + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")

    bf16 = (name("numpy", "dtype") + name("ml_dtypes", "bfloat16") + b"\x89\x88\x87R(K\x03" + text("<")
            + b"NNNK\x02K\x02K\x00tb")
    if not isinstance(obj, Int8):
        return [b"\x80\x04", *array(obj, plain("f4", "<")), b"."]
    return [b"\x80\x04" + name("__main__", "QuantizedWeight8bit") + b")\x81}(" + text("weight"),
            *array(obj.weight, plain("i1", "|")), text("scales"), *array(obj.scales, bf16), b"ub."]


class Model:
    """Random weights of one shape; `write` makes the checkpoint, `logits` is the reference."""

    SLOTS = ["gate", "down", "up", "key", "attention_out", "query", "value", "norm_0", "norm_1", "norm_2", "norm_3", "router"]

    def __init__(self, layers, hidden, heads, kv_heads, head_dim, expert_hidden, vocabulary, experts=8, top_k=2, seed=1):
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})
        rng = np.random.default_rng(seed)
        d, h, kv, f = hidden, heads * head_dim, kv_heads * head_dim, expert_hidden
        self.embedding = rng.standard_normal((vocabulary, d), np.float32) * np.float32(0.1 * d ** -0.5)
        self.final_norm = rng.uniform(8, 20, d).astype(np.float32)  # lively logits
        self.weights = [{
            "gate": Int8(rng, (experts, d, f), 1), "up": Int8(rng, (experts, d, f), 1),
            "down": Int8(rng, (experts, f, d), 8), "query": Int8(rng, (d, h), 1), "key": Int8(rng, (d, kv), 1),
            "value": Int8(rng, (d, kv), 1), "attention_out": Int8(rng, (h, d), 8),
            "router": (rng.standard_normal((d, experts)) * d ** -0.5).astype(np.float32),
            **{f"norm_{i}": rng.uniform(0.5, 1.5, d).astype(np.float32) for i in range(4)}} for _ in range(layers)]

    def write(self, folder):
        os.makedirs(f"{folder}/ckpt-0")
        with open(f"{folder}/config.json", "w") as file:
            json.dump({
                "model_type": "grok-1", "num_hidden_layers": self.layers, "hidden_size": self.hidden,
                "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
                "intermediate_size": self.expert_hidden, "vocab_size": self.vocabulary, "num_experts": self.experts,
                "num_experts_per_tok": self.top_k, "max_position_embeddings": 256, "rope_theta": 10000.0,
                "rms_norm_eps": 1e-5, "attn_logit_softcapping": 30.0,
                "embedding_multiplier_scale": self.hidden ** 0.5, "output_multiplier_scale": 3 ** -0.5,
                "attn_output_multiplier": self.head_dim ** -0.5}, file)
        files = [self.embedding, self.final_norm]
        for layer in sorted(range(self.layers), key=str):  # as xAI numbers them
            files += [self.weights[layer][slot] for slot in self.SLOTS]
        for i, obj in enumerate(files):
            with open(f"{folder}/ckpt-0/tensor{i:05d}_000", "wb") as file:
                file.writelines(pickled(obj))

    def logits(self, tokens):
        """float32 [tokens, vocabulary]"""
        f32 = np.float32

        def rms(x, scale):
            return scale * x / np.sqrt((x * x).mean(-1, keepdims=True) + f32(1e-5))

        def softmax(x):
            p = np.exp(x - x.max(-1, keepdims=True))
            return p / p.sum(-1, keepdims=True)

        count, half = len(tokens), self.head_dim // 2
        frequencies = 10000.0 ** (-np.arange(half) / half)
        phases = (np.arange(count)[:, None] * frequencies).astype(f32)[:, None, :]
        cos, sin = np.cos(phases), np.sin(phases)

        def rotate(x):
            a, b = x[..., :half], x[..., half:]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        x = self.embedding[tokens] * f32(self.hidden ** 0.5)
        causal = np.tril(np.ones((count, count), bool))
        for w in self.weights:
            h = rms(x, w["norm_0"])
            q = rotate((h @ w["query"].matrix()).reshape(count, self.heads, -1))
            k = rotate((h @ w["key"].matrix()).reshape(count, self.kv_heads, -1))
            v = (h @ w["value"].matrix()).reshape(count, self.kv_heads, -1)
            group = self.heads // self.kv_heads
            scores = np.einsum("thd,shd->hts", q, np.repeat(k, group, 1)) * f32(self.head_dim ** -0.5)
            scores = np.where(causal, 30 * np.tanh(scores / 30), f32(-1e30))
            heads = np.einsum("hts,shd->thd", softmax(scores), np.repeat(v, group, 1)).reshape(count, -1)
            x = x + rms(heads @ w["attention_out"].matrix(), w["norm_1"])
            h = rms(x, w["norm_2"])
            gates = softmax(h @ w["router"])
            chosen = np.argsort(-gates, -1, kind="stable")[:, :self.top_k]
            moe = np.zeros_like(x)
            for expert in np.unique(chosen):
                rows = np.nonzero((chosen == expert).any(-1))[0]
                g, u = h[rows] @ w["gate"].matrix(expert), h[rows] @ w["up"].matrix(expert)
                gelu = 0.5 * g * (1 + np.tanh(f32((2 / np.pi) ** 0.5) * (g + f32(0.044715) * g ** 3)))
                moe[rows] += gates[rows, expert, None] * ((gelu * u) @ w["down"].matrix(expert))
            x = x + rms(moe, w["norm_3"])
        return (rms(x, self.final_norm) @ self.embedding.T) * f32(3 ** -0.5)


def log_probabilities(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def own_memory(program):
    """Anonymous and shared memory of all running ranks together, in bytes."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/exe") == program:
                with open(f"/proc/{pid}/status") as status:
                    total += sum(int(line.split()[1]) * 1024 for line in status if line.startswith(("RssAnon", "RssShmem")))
        except OSError:
            pass  # it ended meanwhile
    return total


def run(program, arguments, ranks):
    """The command's JSON, and the most memory its ranks had together."""
    launcher = [] if ranks == 1 else ["mpirun", "-n", str(ranks)]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*launcher, program, *arguments, "--json"], stdout=output, stderr=log, env=ENVIRONMENT)
        most = 0
        while process.poll() is None:
            most = max(most, own_memory(program))
            time.sleep(0.05)
        output.seek(0)
        log.seek(0)
        if process.returncode != 0:
            sys.exit(f"{arguments[0]} on {ranks} ranks: exit {process.returncode}\n{log.read()}")
        return json.load(output), most


def check(name, holds, detail=""):
    print(f"{'ok  ' if holds else 'FAIL'} {name} {detail}", flush=True)
    if not holds:
        sys.exit(1)


def compare(program, folder, model, plans, prompt, new_tokens):
    """Greedy tokens and scores on every plan, against the reference and among each other."""
    tokens, margins = list(prompt), []
    for _ in range(new_tokens):
        last = model.logits(tokens)[-1]
        second, first = np.sort(last)[-2:]
        margins.append(first - second)
        tokens.append(int(last.argmax()))
    expected = log_probabilities(model.logits(tokens))[np.arange(len(tokens) - 1), tokens[1:]]
    ids = ",".join(map(str, tokens))
    answers = []
    for ranks, flags in plans:
        score, memory = run(program, ["score", "--model", folder, "--ids", ids, *flags], ranks)
        generated, more = run(program, ["generate", "--model", folder, "--prompt-ids", ",".join(map(str, prompt)), "--max-tokens",
                                        str(new_tokens), "--temperature", "0", "--ignore-eos", *flags], ranks)
        answers.append((score["logprobs"], generated["logprobs"], generated["ids"]))
        yield ranks, flags, max(memory, more)
    check("the same bits on every plan", all(answer == answers[0] for answer in answers))
    error = np.abs(np.array(answers[0][0]) - expected)
    check("log probabilities", error.mean() <= MEAN_BOUND, f"mean error {error.mean():.1e}, largest {error.max():.1e}")
    # Beyond a margin that the arithmetic cannot resolve, the continuations may part.
    sure = next((i for i, margin in enumerate(margins) if margin < 5e-3), new_tokens)
    check("greedy tokens", answers[0][2][:sure] == tokens[len(prompt):][:sure], f"{sure} of {new_tokens} are sure")


SHAPES = {
    "chunks of 15 columns, 11 layers": dict(layers=11, hidden=96, heads=24, kv_heads=8, head_dim=4, expert_hidden=120,
                                            vocabulary=1001),
    "24 over 8 heads of 10: chunks of 30 columns hold 3 heads": dict(layers=2, hidden=64, heads=24, kv_heads=8, head_dim=10,
                                                                     expert_hidden=200, vocabulary=257),
    "half heads, one KV head, five experts, three chosen": dict(layers=3, hidden=40, heads=4, kv_heads=1, head_dim=16,
                                                                expert_hidden=72, vocabulary=130, experts=5, top_k=3),
}
PLANS = [(1, []), (1, ["--prefill-chunk", "3"]), (2, ["--expert-parallel", "2"]), (3, []), (5, ["--exchange", "alltoall"]),
         (8, ["--exchange", "alltoall", "--data-parallel", "2"])]


def main():
    program = os.path.realpath(sys.argv[1])
    folder = tempfile.mkdtemp(prefix="jubal-reference-")
    try:
        if "--true-dimensions" in sys.argv:
            model = Model(layers=1, hidden=6144, heads=48, kv_heads=8, head_dim=128, expert_hidden=32768, vocabulary=131072)
            model.write(f"{folder}/model")
            plans = {1: ["--threads", "2"], 8: []}
            for ranks, flags, memory in compare(program, f"{folder}/model", model, plans.items(), [5, 17, 3, 99999, 777], 4):
                plan = json.loads(subprocess.run([program, "plan", "--model", f"{folder}/model", "-n", str(ranks), "--json"],
                                                 capture_output=True, check=True).stdout)["total_bytes"]
                check(f"memory on {ranks} ranks", memory <= plan + ranks * 100e6,
                      f"{memory / 1e9:.2f} GB, planned {plan / 1e9:.2f} GB")
            return
        for number, (name, shape) in enumerate(SHAPES.items()):
            print(name, flush=True)
            model = Model(**shape, seed=number + 1)
            model.write(f"{folder}/{number}")
            prompt = [int(t) for t in np.random.default_rng(number).integers(1, model.vocabulary, 37)]
            for _ in compare(program, f"{folder}/{number}", model, PLANS, prompt, 8):
                pass
    finally:
        shutil.rmtree(folder)


main()
