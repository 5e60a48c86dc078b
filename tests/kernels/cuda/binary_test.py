#!/usr/bin/env python3
"""Reads what nvcc made of the GPU's kernels, without a GPU.

 - Every kernel is there as machine code for each GPU promised, and as PTX for newer ones.
 - None takes more registers than register_budget.csv allows: a few more, and fewer blocks fit a
   multiprocessor; the results stay right, and no other test would notice.
 - None keeps anything in local memory: a spilled register is read back from it.

In the table a kernel stands without its template arguments, for all its instances, or with them.
Give it the next multiple of 8, as GPUs hand out registers.

usage: binary_test.py LIBRARY KERNELS_FOLDER
"""

import collections
import csv
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

MACHINE_CODE = {"sm_80", "sm_90a"}
PTX = {"sm_90"}
SKIPPED = 77

Use = collections.namedtuple("Use", "registers stack local")


def find_cuobjdump():
    """The toolkit's, or that of the Python package nvidia-cuda-cuobjdump."""
    package = importlib.util.find_spec("nvidia")
    places = list(package.submodule_search_locations) if package else []
    packaged = [path for place in places for path in pathlib.Path(place).glob("*/bin/cuobjdump")]
    return shutil.which("cuobjdump") or (str(packaged[0]) if packaged else None)


def read(cuobjdump, library):
    """Returns two dicts: {(file, kernel, architecture): Use}, of machine code, and
    {(file, kernel): architectures}, of PTX. Names are mangled."""
    uses = {}
    ptx = collections.defaultdict(set)
    file = architecture = kernel = None
    text = subprocess.run([cuobjdump, "--dump-resource-usage", "--dump-ptx", library],
                          check=True, capture_output=True, text=True).stdout
    for line in text.splitlines():
        if match := re.match(r"member .*?([^/:]+\.cu)\.o:", line):
            file = match[1]
        elif match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r" Function (\w+):", line):
            kernel = match[1]
        elif match := re.search(r"\bREG:(\d+) STACK:(\d+) .*\bLOCAL:(\d+)", line):
            uses[file, kernel, architecture] = Use(*map(int, match.groups()))
        elif match := re.search(r"\.entry (\w+)", line):
            ptx[file, match[1]].add(architecture)
    return uses, ptx


def readable(names):
    """{mangled: as in the table}"""
    names = sorted(names)
    text = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True,
                          text=True).stdout
    result = {}
    for name, line in zip(names, text.splitlines()):
        # [void ]jubal::(anonymous namespace)::NAME[<(jubal::ENUM)1, …>](PARAMETERS)
        line = line.replace("(anonymous namespace)::", "").replace("jubal::", "")
        line = re.sub(r"\(\w+\)(?=\d)", "", line)
        result[name] = line.removeprefix("void ").split("(")[0]
    return result


def main():
    library, folder = sys.argv[1:]
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("no cuobjdump here: pip install nvidia-cuda-cuobjdump")
        return SKIPPED
    uses, ptx = read(cuobjdump, library)
    kernels = {(file, kernel) for file, kernel, _ in uses} | set(ptx)
    names = readable({kernel for _, kernel in kernels})
    with open(pathlib.Path(__file__).with_name("register_budget.csv"), encoding="utf-8") as table:
        budget = {(row["file"], row["kernel"]): int(row["registers"])
                  for row in csv.DictReader(table)}

    failures = []
    met = set()
    for file, kernel in sorted(kernels):
        name = names[kernel]
        where = f"{file}: {name}"
        of_kernel = {arch: use for (*place, arch), use in uses.items() if place == [file, kernel]}
        for missing in MACHINE_CODE - set(of_kernel):
            failures.append(f"{where}: no machine code for {missing}")
        for missing in PTX - ptx[file, kernel]:
            failures.append(f"{where}: no PTX for {missing}")
        rows = [(file, name), (file, name.split("<")[0])]
        row = next((row for row in rows if row in budget), None)
        met.add(row)
        for arch, use in sorted(of_kernel.items()):
            if use.stack or use.local:
                failures.append(f"{where}: {use.stack + use.local} bytes of local memory on {arch}")
            if row is None:
                failures.append(f"{where}: {use.registers} registers on {arch}, and no row in "
                                "register_budget.csv")
            elif use.registers > budget[row]:
                failures.append(f"{where}: {use.registers} registers on {arch}, {budget[row]} "
                                "allowed")
    failures += [f"{file}: {kernel}: in register_budget.csv, but not in the library"
                 for file, kernel in sorted(set(budget) - met)]
    launching = {path.name for path in pathlib.Path(folder).glob("*.cu")
                 if "__global__" in path.read_text(encoding="utf-8")}
    failures += [f"{file}: has no kernel in the library"
                 for file in sorted(launching - {file for file, _ in kernels})]
    print(*failures or [f"{len(kernels)} kernels for {', '.join(sorted(MACHINE_CODE))} and newer: "
                        f"at most {max(use.registers for use in uses.values())} registers, "
                        "nothing in local memory"], sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
