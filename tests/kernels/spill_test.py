#!/usr/bin/env python3
"""Reads the machine code of the kernels' inner loops: none may store a vector.

A compiler that runs out of registers keeps sums on the stack; the results stay right, at half the
speed, and no other test would notice.

usage: spill_test.py OBJDUMP LIBRARY
"""

import re
import subprocess
import sys

MULTIPLY = re.compile(r"vpmaddwd|vpdpbusd|vfmadd\d+ps")
VECTOR_STORE = re.compile(r"v.*,[^,(]*\([^()]*\)$")  # AT&T syntax: the destination is last
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)")
# Fewer loops that multiply, and this test has lost sight of them.
LEAST_LOOPS = {
    "matmul_avx2.cc.o": 18,
    "matmul_avx512.cc.o": 32,  # 6 integer tiles, 24 float tiles, 2 peaks
    "paged_attention_avx2.cc.o": 54,
    "paged_attention_avx512.cc.o": 72,  # 3 types, 8 numbers of heads, 3 loops
}


def functions(objdump, library):
    """Yields (object, function, [(address, instruction)])."""
    text = subprocess.run([objdump, "--disassemble", "--demangle", "--no-show-raw-insn", library],
                          check=True, capture_output=True, text=True).stdout
    name = function = None
    code = []
    for line in text.splitlines():
        if match := re.match(r"(\S+):\s+file format", line):
            name = match[1]
        elif match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            yield name, function, code
            function, code = match[1], []
        elif match := re.match(r"\s+([0-9a-f]+):\s+([^#]*)", line):
            code.append((int(match[1], 16), match[2].strip()))
    yield name, function, code


def inner_loops(code):
    """Yields the instructions of loops without loops in them: ranges that end in a jump back, and
    that nothing leaves before."""
    begin = {address: i for i, (address, _) in enumerate(code)}
    ends = []
    for i, (_, instruction) in enumerate(code):
        match = JUMP.match(instruction)
        target = begin.get(int(match[1], 16)) if match else None
        if target is not None and target <= i:
            ends.append((target, i))
    for first, last in ends:
        body = [instruction for _, instruction in code[first:last + 1]]
        nested = any((first, last) != other and first <= other[0] and other[1] <= last
                     for other in ends)
        if not nested and not any(re.match(r"ret|jmp\b", instruction) for instruction in body):
            yield body


def main():
    loops = dict.fromkeys(LEAST_LOOPS, 0)
    failures = []
    for name, function, code in functions(*sys.argv[1:]):
        if name not in loops:
            continue
        for body in inner_loops(code):
            if not any(MULTIPLY.match(instruction) for instruction in body):
                continue
            loops[name] += 1
            failures += [f"{name}: {function}: {instruction}" for instruction in body
                         if VECTOR_STORE.match(instruction)]
    failures += [f"{name}: found {loops[name]} loops that multiply, expected at least {least}"
                 for name, least in LEAST_LOOPS.items() if loops[name] < least]
    print(*failures or [f"{sum(loops.values())} loops that multiply, none stores a vector"],
          sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
