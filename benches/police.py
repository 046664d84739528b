#!/usr/bin/env python3
"""Times bpf(2) with and without policing.

A kernel that calls LSM programs polices the measured process: `police profile --run`, whose programs are those of a policed
container. Another kernel runs the same code at the entry of the system call, where it has to copy the arguments first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import figures

KINDS = ["MAP_LOOKUP_ELEM", "MAP_CREATE", "PROG_LOAD of 2 instructions", "PROG_LOAD of 4096 instructions"]
OBJECT = Path(__file__).resolve().parent.parent / "tests/bpf/police_cost.bpf.o"


def output(command):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr.strip()}")
    return done.stdout


def medians(command):
    """The medians that the measuring program prints in its first line, in the order of KINDS."""
    return [float(word) for word in output(command).splitlines()[0].split()]


def alternating(commands, runs):
    """The medians of each command over the runs, which alternate."""
    results = [[medians(command) for command in commands] for _ in range(runs)]
    return [[median(run[at][kind] for run in results) for kind in range(len(KINDS))] for at in range(len(commands))]


def shown(name, taken):
    print(name, *(f"{kind} {time:.2f} µs" for kind, time in zip(KINDS, taken)), sep="  ")


def policed(options, measure):
    """Under a kernel that polices."""
    bare, under = alternating([measure, [options.binary, "police", "profile", "--run", "--", *measure]], options.runs)
    shown("not policed", bare)
    shown("policed", under)
    ratios = [figures.Figure(f"{kind}, policed", with_it / without, "x") for kind, with_it, without in zip(KINDS, under, bare)]
    return figures.Benchmark(f"police in a guest with {os.uname().release.split('.')[0]}", options).report(ratios)


def judged(options, measure):
    """Under a kernel that calls no LSM programs."""
    benchmark = figures.Benchmark("police", options)
    with tempfile.TemporaryDirectory(prefix="bpfman-hook-bench-") as bpffs:
        output(["mount", "-t", "bpf", "bpf", bpffs])
        try:
            output(["bpftool", "prog", "loadall", OBJECT, f"{bpffs}/programs"])
            pins = [f"{bpffs}/programs/judge_{name}" for name in ["nothing", "calls"]]
            bare, nothing, calls = alternating([measure, *([*measure, pin] for pin in pins)], options.runs)
        finally:
            output(["umount", bpffs])
    for name, taken in [("without", bare), ("a program that does nothing", nothing), ("the code of policing", calls)]:
        shown(name, taken)
    found = [figures.Figure(f"{KINDS[0]}, judged", calls[0] - bare[0], "µs", 1)]
    found += [figures.Figure(f"{kind}, judged", calls[at] / bare[at], "x") for at, kind in enumerate(KINDS) if at]
    return benchmark.report(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--floors", required=True, help="directory with the compiled programs")
    parser.add_argument("--calls", type=int, default=1000, help="calls of each kind in a run")
    parser.add_argument("--runs", type=int, default=9, help="runs of each kind")
    figures.arguments(parser)
    options = parser.parse_args()
    options.binary = os.path.realpath(options.binary)
    measure = [f"{options.floors}/police", options.calls]
    said = subprocess.run([options.binary, "doctor", "-o", "json"], capture_output=True, text=True).stdout
    possible = any(one["check"] == "policing" and one["detail"].startswith("possible") for one in json.loads(said))
    return (policed if possible else judged)(options, measure)


if __name__ == "__main__":
    sys.exit(main())
