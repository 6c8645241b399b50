#!/usr/bin/env python3
"""Tells where a step's time went, from a trace that bench/gpu_trace.cpp has written.

By kernel and grid: how often it ran, how long it took from its start to its end, and by how much
its end was behind the one before it. The latter add up to the step: kernels that started early
have waited for others meanwhile. Microseconds.

Usage: bench/gpu_trace.py FILE [--end KERNEL]   a step ends with KERNEL: sample_kernel
"""

import argparse
import collections
import re

KERNEL = re.compile(r"\d+([a-z_]+_kernel)")


def read(path):
    """[begin_ns, end_ns, grid, name], in the order of their begin."""
    entries = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            begin, end, grid, _, _, _, mangled = line.split(None, 6)
            found = KERNEL.search(mangled.split("GLOBAL__N_")[-1])
            name = found.group(1) if found else mangled.strip()[:40]
            if found and "PackedE4m3" in mangled:
                name += " (e4m3)"
            entries.append((int(begin), int(end), grid, name))
    return sorted(entries)


def last_step(entries, end_kernel):
    """What came behind the last but two ends of steps: the last may have been cut off."""
    ends = [i for i, entry in enumerate(entries) if entry[3] == end_kernel]
    if len(ends) < 3:
        return None
    return entries[ends[-3]][1], entries[ends[-3] + 1:ends[-2] + 1]


def table(entries, end_kernel="sample_kernel"):
    """Lines of text, or None for a trace of fewer than three steps."""
    step = last_step(entries, end_kernel)
    if step is None:
        return None
    began, inside = step
    rows = collections.defaultdict(lambda: [0, 0.0, 0.0])
    ended = began
    for begin, end, grid, name in inside:
        row = rows[name, grid]
        row[0] += 1
        row[1] += (end - begin) / 1e3
        row[2] += max(end - ended, 0) / 1e3
        ended = max(ended, end)
    lines = [f"a step of {(ended - began) / 1e3:.1f} us, {len(inside)} kernels and copies",
             f"{'count':>6} {'took':>9} {'moved on':>9} {'in all':>9}  kernel, grid"]
    for (name, grid), (count, took, moved) in sorted(rows.items(), key=lambda row: -row[1][2]):
        lines.append(f"{count:6} {took / count:9.2f} {moved / count:9.2f} {moved:9.1f}  "
                     f"{name} {grid}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--end", default="sample_kernel")
    options = parser.parse_args()
    lines = table(read(options.file), options.end)
    if lines is None:
        parser.exit(1, f"{options.file}: fewer than three steps that end with {options.end}: let "
                       "the program generate more tokens\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
