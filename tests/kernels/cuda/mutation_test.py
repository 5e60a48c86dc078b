#!/usr/bin/env python3
"""Breaks one index, bound or barrier of a GPU's kernel at a time: its tests must notice.

Each mutation is compiled and linked as the build does it, into a program of its own that runs the
tests named with it on the emulated GPU. One after which they still pass shows what they miss.

usage: mutation_test.py NINJA BUILD_FOLDER [FILE …]     only mutations of these: rms_norm.cu …
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

PROGRAM = "kernels_cuda_emulated_gpus"
SOURCE = pathlib.Path(__file__).resolve().parents[3]
SECONDS = 300  # a broken kernel may well run for ever


@dataclasses.dataclass
class Mutation:
    file: str  # in kernels/cuda
    before: str  # stands there once
    after: str
    tests: str  # a filter for GoogleTest
    units: tuple = ()  # the files to compile, when `file` is a header


MUTATIONS = [
    Mutation("add.cu", "std::int64_t{blockIdx.y} * kColumns;",
             "std::int64_t{blockIdx.y} * kThreads;", "*AddGpu*"),
    Mutation("add.cu", "i < end; i += kThreads", "i < end - 1; i += kThreads", "*AddGpu*"),
    Mutation("combine_experts.cu", "ids[i] < ids[j] ||", "ids[i] > ids[j] ||", "*CombineExperts*"),
    Mutation("combine_experts.cu", "  __syncthreads();\n", "", "*CombineExperts*"),
    Mutation("combine_experts.cu", "place < a.top_k; ++place", "place < a.top_k - 1; ++place",
             "*CombineExperts*"),
    # Tiles of products are in headers.
    Mutation("float_tile.h", "      __syncthreads();\n      const int slots",
             "      const int slots", "*MatmulGpu*", ("products.cu",)),
    Mutation("float_tile.h", "WaitForCopies<kStages - 1>();", "WaitForCopies<kStages>();",
             "*MatmulGpu*", ("products.cu",)),
    Mutation("wide_tile.h", "WaitForCopies<kStages - 2>();", "WaitForCopies<kStages - 1>();",
             "*MatmulGpu*", ("products.cu",)),
    Mutation("wide_tile.h", "next.step + step < next.step_end", "next.step + step <= next.step_end",
             "*MatmulGpu*", ("products.cu",)),
    Mutation("paged_attention.cu",
             "  __syncthreads();  // the queries are not needed any more\n", "",
             "*PagedAttention*"),
    Mutation("paged_attention.cu", "run * kRun < keys; ++run", "(run + 1) * kRun < keys; ++run",
             "*PagedAttention*"),
    Mutation("paged_attention.cu", "load_scales(kPage + first_key % kPage)",
             "load_scales(first_key % kPage)", "*PagedAttention*"),
    Mutation("paged_attention.cu", "const bool seen = first_key + e < shared",
             "const bool seen = first_key + e <= shared", "*PagedAttention*"),
    Mutation("paged_attention.cu", "* heads + head) * runs + run;", "* heads + head) * runs;",
             "*PagedAttention*"),
    Mutation("permute.cu", "  __syncthreads();\n  if (warp == 0) {", "  if (warp == 0) {",
             "*GroupByExpert*"),
    Mutation("permute.cu", "  __syncthreads();\n  for (int e = warp", "  for (int e = warp",
             "*GroupByExpert*"),
    Mutation("permute.cu", "(1u << lane) - 1u", "(2u << lane) - 1u", "*GroupByExpert*"),
    Mutation("permute.cu", "if (lane >= lanes) sum += left;", "sum += left;", "*GroupByExpert*"),
    Mutation("permute.cu", "from * x_stride + i", "from * words + i", "*GatherRows*"),
    Mutation("products.cu", "rows.expert * matrix.expert_bytes + ", "", "*GatedExperts*"),
    Mutation("products.cu", "min(most, end - first)", "most", "*GatedExperts*"),
    Mutation("products.cu", "    __syncthreads();\n    for (const unsigned of_warp",
             "    for (const unsigned of_warp", "*MatmulGpu*"),
    Mutation("products.cu", "(group - 1) * cut.group_rows) + k", "group * cut.group_rows) + k",
             "*MatmulGpu*"),
    Mutation("products.cu", "  column -= matrix.column_offset;\n", "", "*MatmulGpu*"),
    Mutation("products.cu", "sums[c] += sums[c + half]", "sums[c] += sums[c + 1]", "*MatmulGpu*"),
    Mutation("products.cu", "p.below[chunk] - 1; node >=", "p.below[chunk] - 1; node >",
             "*MatmulGpu*"),
    Mutation("rms_norm.cu", "  __syncthreads();\n", "", "*RmsNorm*"),
    Mutation("rms_norm.cu", "i < hidden; i += kThreads) {", "i <= hidden; i += kThreads) {",
             "*RmsNorm*"),
    Mutation("rms_norm.cu", "i < hidden; i += kThreads) out", "i < hidden - 1; i += kThreads) out",
             "*RmsNorm*"),
    Mutation("rms_norm.cu", "x += blockIdx.x * x_stride", "x += blockIdx.x * hidden", "*RmsNorm*"),
    Mutation("rms_norm.cu", "lanes = kWarp / 2", "lanes = kWarp / 4", "*RmsNorm*"),
    Mutation("rms_norm.cu", "if (threadIdx.x % kWarp == 0)", "if (threadIdx.x == 0)", "*RmsNorm*"),
    Mutation("rope.cu", "positions[blockIdx.x]", "positions[0]", "*RopeGpu*"),
    Mutation("rope.cu", "blockIdx.y * kHeads * 2 * half", "blockIdx.y * kHeads * half",
             "*RopeGpu*"),
    Mutation("route_top_k.cu", "lanes = kWarp / 2", "lanes = kWarp / 4", "*RouteTopK*"),
    Mutation("route_top_k.cu", "return a.expert < b.expert", "return a.expert > b.expert",
             "*RouteTopK*"),
    Mutation("route_top_k.cu", "logits += t * logits_stride", "logits += t * experts",
             "*RouteTopK*"),
    Mutation("sample.cu", "  __syncthreads();\n  value = shared.partial[0]",
             "  value = shared.partial[0]", "*SampleGpu*"),
    Mutation("sample.cu", "begin += chosen * part", "begin += chosen", "*SampleGpu*"),
    Mutation("sample.cu", "    __syncthreads();\n    int chosen = 0;", "    int chosen = 0;",
             "*SampleGpu*"),
    Mutation("sample.cu", "(row.top_k) - 1)", "(row.top_k))", "*SampleGpu*"),
    Mutation("sample.cu", "if (digits >> kDigitBits != prefix) continue;", "", "*SampleGpu*"),
    Mutation("store_kv.cu", "page * a.page_bytes + head * a.head_bytes", "page * a.page_bytes",
             "*StoreKv*"),
    Mutation("store_kv.cu", "(is_value ? kPageTokens : 0) + slot", "slot", "*StoreKv*"),
    Mutation("sum_tree.cu", "sums[c + size / 2]", "sums[c + 1]", "*SumTree*"),
    Mutation("sum_tree.cu", "partials.num_chunks[c] < size",
             "partials.num_chunks[c] < size / 2", "*SumTree*"),
]


class Build:
    """The commands that make the program, as Ninja knows them."""

    def __init__(self, ninja, folder):
        self.folder = folder
        text = subprocess.run([ninja, "-C", folder, "-t", "commands", PROGRAM], check=True,
                              capture_output=True, text=True).stdout
        self.commands = [shlex.split(line) for line in text.splitlines()]
        self.link = self.commands[-1]
        self.program = pathlib.Path(folder, self.link[self.link.index("-o") + 1])

    def run(self, command):
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")

    def compile(self, unit, scratch):
        """Compiles that file, or its copy in `scratch`, with the headers there before others."""
        source = str(SOURCE / "kernels/cuda" / unit)
        command = next(command for command in self.commands
                       if command[-1] == source and any("cuda_on_fibers.h" in word
                                                        for word in command)).copy()
        for flag in ["-MF", "-MT", "-o"]:
            at = command.index(flag)
            del command[at:at + 2]
        command.remove("-MD")
        copy = scratch / "kernels/cuda" / unit
        command[-1] = str(copy if copy.exists() else source)
        command[-2:-2] = ["-o", str(scratch / (unit + ".o"))]
        first = next(i for i, word in enumerate(command) if word.startswith("-I"))
        command[first:first] = ["-w", f"-I{scratch}"]
        self.run(command)

    def link_with(self, objects, program):
        """Links the program anew, with these objects instead of those of the library."""
        command = [word for word in self.link if word not in (":", "&&")]
        at = command.index("-o")
        command[at:at + 2] = ["-o", str(program), *map(str, objects)]
        self.run(command)


def passes(program, tests):
    try:
        return subprocess.run([program, f"--gtest_filter={tests}"], timeout=SECONDS,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def survives(build, mutation):
    text = (SOURCE / "kernels/cuda" / mutation.file).read_text(encoding="utf-8")
    if text.count(mutation.before) != 1:
        raise RuntimeError(f"{mutation.file}: {text.count(mutation.before)} times "
                           f"{mutation.before!r}, not once")
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        copy = scratch / "kernels/cuda" / mutation.file
        copy.parent.mkdir(parents=True)
        copy.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        units = mutation.units or (mutation.file,)
        for unit in units:
            build.compile(unit, scratch)
        program = scratch / PROGRAM
        build.link_with([scratch / (unit + ".o") for unit in units], program)
        return passes(program, mutation.tests)


def main():
    ninja, folder, *files = sys.argv[1:]
    build = Build(ninja, folder)
    mutations = [m for m in MUTATIONS if not files or m.file in files]
    for tests in sorted({m.tests for m in mutations}):
        if not passes(build.program, tests):
            print(f"{tests}: fails without any mutation")
            return 1
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        tried = [(m, pool.submit(survives, build, m)) for m in mutations]
        for mutation, outcome in tried:
            try:
                said = "SURVIVES" if outcome.result() else "noticed"
            except (OSError, RuntimeError, StopIteration) as error:
                said = f"cannot be tried: {error}"
            failures += said != "noticed"
            print(f"{mutation.file}: {mutation.before!r} -> {mutation.after!r}: {said}",
                  flush=True)
    print(f"{len(mutations)} mutations, {failures} not noticed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
