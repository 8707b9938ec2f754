#!/usr/bin/env python3
"""Writes kernels as byte arrays: embed.py OUT.c DEPFILE NAME.cl...

#include "NAME.clh" is expanded from the kernel's own folder, so that what is compiled on a device, and what its
cache key covers, is one whole text.
"""
import os
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"/]+)"\s*$')


def expand(path, seen, within=()):
    if path in within:
        sys.exit(f"{path}: includes itself")
    seen.add(path)
    lines = []
    with open(path, encoding="ascii") as file:
        for line in file:
            found = INCLUDE.match(line)
            if found:
                lines += expand(os.path.join(os.path.dirname(path), found.group(1)), seen, within + (path,))
            else:
                lines.append(line if line.endswith("\n") else line + "\n")
    return lines


def main(out, depfile, *kernels):
    seen = set()
    arrays, table = [], []
    for kernel in kernels:
        name = os.path.splitext(os.path.basename(kernel))[0]
        data = "".join(expand(kernel, seen)).encode("ascii") + b"\0"
        rows = [", ".join(str(byte) for byte in data[i : i + 24]) for i in range(0, len(data), 24)]
        arrays.append(f"static const char {name}_text[] = {{\n" + ",\n".join(rows) + "};\n")
        table.append(f'    {{"{name}", {name}_text}},\n')
    with open(out, "w", encoding="ascii") as file:
        file.write('/* Made by embed.py. */\n#include "cl_runtime.h"\n\n')
        file.write("\n".join(arrays))
        file.write("\nconst cl_source cl_sources[] = {\n" + "".join(table) + "    {0, 0},\n};\n")
    with open(depfile, "w", encoding="utf-8") as file:
        escaped = " ".join(path.replace(" ", "\\ ") for path in sorted(seen))
        file.write(f"{out}: {escaped}\n")


main(*sys.argv[1:])
