"""Prints a benchmark's figures: each with its target, and with its change against the last accepted figure.

Figures that hardly depend on the machine's speed, which are ratios and amounts of memory, are kept in `accepted.json` by
benchmark and name. `--accept` replaces those of one benchmark.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

ACCEPTED = Path(__file__).resolve().parent / "accepted.json"
NAME = "benches/accepted.json"
GROWN = 1.25
COMPARED = ["x", "MiB"]
DIGITS = {"x": 2, "MiB": 2, "s": 3, "ms": 3, "µs": 1}


class Figure(NamedTuple):
    """One result. `value`, `target` (None: it has none) and `interval` (95 %, None: not determined) are in `unit`."""

    name: str
    value: float
    unit: str
    target: Optional[float] = None
    interval: Optional[Tuple[float, float]] = None

    def written(self, value):
        return f"{value:.{DIGITS[self.unit]}f} {self.unit}"


def arguments(parser):
    """The options that all benchmarks have."""
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--accept", action="store_true", help=f"write the ratios and the memory to {NAME}")


def read():
    """The accepted figures by benchmark, empty if none have been accepted yet."""
    try:
        return json.loads(ACCEPTED.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        sys.exit(f"{NAME} is not JSON: {error}: restore it with `git checkout {NAME}`")


class Benchmark:
    """The figures of one benchmark. Reads the accepted ones when it is made, so that a damaged file fails before the runs."""

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.accepted = read().get(name, {})

    def change(self, figure):
        """What to print beside a figure about the accepted one."""
        if figure.unit not in COMPARED:
            return ""
        before = self.accepted.get(figure.name)
        if not before:
            return "no accepted figure"
        return f"accepted {figure.written(before)}, {(figure.value / before - 1) * 100:+.0f} %"

    def report(self, figures):
        """Prints the figures, and what grew by more than a quarter; accepts them if asked to. Returns the exit status."""
        figures, missed = list(figures), 0
        width = max(len(one.name) for one in figures)
        print("\nfigures, with their targets and their change against the accepted figures")
        for one in figures:
            digits = DIGITS[one.unit]
            spread = verdict = ""
            if one.interval:
                spread = f"[{one.interval[0]:.{digits}f} {one.interval[1]:.{digits}f}]"
            if one.target is not None:
                missed += one.value > one.target
                verdict = f"target {one.target:g} {one.unit}  {'met' if one.value <= one.target else 'MISSED'}"
            line = f"  {one.name:{width}} {one.value:9.{digits}f} {one.unit:3}  {spread:17}  {verdict:22}  {self.change(one)}"
            print(line.rstrip())
        targets = sum(one.target is not None for one in figures)
        print(f"\n{missed} of {targets} targets missed" if missed else f"\nall {targets} targets met")
        self.compare([one for one in figures if one.unit in COMPARED])
        if self.options.accept:
            self.accept(figures)
        return 1 if missed and self.options.strict else 0

    def compare(self, figures):
        """Prints what grew by more than a quarter, and what cannot be compared."""
        known = [one for one in figures if self.accepted.get(one.name)]
        if not self.accepted:
            print(f"nothing to compare with: {NAME} has no figures of this benchmark; `make bench ACCEPT=1` writes them")
            return
        grown = [one for one in known if one.value > GROWN * self.accepted[one.name]]
        print(f"{len(grown) or 'none'} of {len(known)} figures grew by more than a quarter{':' if grown else ''}")
        for one in grown:
            print(f"  {one.name}: {one.written(one.value)}, {self.change(one)}")
        new = [one.name for one in figures if one not in known]
        gone = sorted(self.accepted.keys() - {one.name for one in figures})
        for what, names in [("measured, but not accepted yet", new), ("accepted, but not measured now", gone)]:
            if names:
                print(f"{what}: {'; '.join(names)}")

    def accept(self, figures):
        """Replaces the accepted figures of this benchmark, and those of no other one."""
        everything = read()
        # A difference of two times can be below zero if few runs were disturbed; nothing can be compared with that.
        taken = [one for one in figures if one.unit in COMPARED and one.value > 0]
        everything[self.name] = {one.name: round(one.value, 3) for one in taken}
        ACCEPTED.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n")
        print(f"accepted {len(taken)} figures in {NAME}")
        below = [one.name for one in figures if one.unit in COMPARED and one not in taken]
        if below:
            print(f"not accepted, since they are not above zero: {'; '.join(below)}")
