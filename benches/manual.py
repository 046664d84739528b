#!/usr/bin/env python3
"""Times manual commands, bpftool and the gRPC service, listings of many records, and the cost of recording metrics.

Loads, attaches and unloads one XDP program in a network namespace of its own: with our commands, with bpftool, and with one
client of a running service and of a socket-activated one. The cases alternate; prints medians, with 95 % intervals from 2000
bootstrap samples. Needs root, bpftool, systemd-socket-activate.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench
import figures

LIVING = 200
MANY = 100_000
PLAIN, CORE = ("one_xdp", "count"), ("one_xdp_core", "measure")


class World:
    """A network of its own, and a root user without restrictions."""

    def __init__(self, place, helper):
        self.place, self.helper = place, helper
        bench.tool("ip", "link", "set", "lo", "up")

    def object(self, case):
        return bench.TESTS / "bpf" / f"{case[0]}.bpf.o"

    def ours(self, *words):
        """A sample of one command."""
        return bench.timed(self.place, None, self.place.binary, "--root", self.place.root, *words)[0]

    def said(self, *words):
        words = [self.place.binary, "--root", self.place.root, *map(str, words)]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def client(self, socket):
        words = [self.helper, "client", socket, self.object(PLAIN), PLAIN[1], "lo"]
        return bench.timed(self.place, None, *words)[0]

    def service(self, socket, activated):
        """A listening service, or systemd-socket-activate, which will start one."""
        socket.unlink(missing_ok=True)
        ours = [self.place.binary, "--root", self.place.root, "system", "service"]
        if activated:
            words = ["systemd-socket-activate", "-l", socket, *ours]
        else:
            words = [*ours, f"unix://{socket}", "--timeout", "0"]
        # systemd-socket-activate logs what it does.
        quiet = subprocess.DEVNULL if activated else None
        process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=quiet)
        end = time.monotonic() + 20
        while not socket.is_socket():
            if time.monotonic() > end or process.poll() is not None:
                sys.exit(f"no service listens: {words[0]}")
            time.sleep(0.001)
        return process

    def remove(self):
        # Only the pins hold the programs.
        self.place.remove()


def kill(process):
    process.kill()
    process.wait()


def measure(world, samples, runs):
    """Samples by case, in seconds."""
    place = world.place
    add = lambda case, value: samples.setdefault(case, []).append(value)
    bpftool = shutil.which("bpftool")
    timed = lambda *words: bench.timed(place, None, bpftool, *words)[0]

    def command_line(_):
        load = world.ours("load", "file", "--path", world.object(PLAIN), "--programs", f"xdp:{PLAIN[1]}")
        program = world.said("list", "programs", "-q").strip()
        attach = world.ours("attach", program, "xdp", "--iface", "lo", "--priority", 50)
        unload = world.ours("unload", program)
        add("load", load)
        add("load, attach, unload", load + attach + unload)

    def command_line_core(_):
        add("load, CO-RE", world.ours("load", "file", "--path", world.object(CORE), "--programs", f"xdp:{CORE[1]}"))
        world.said("unload", world.said("list", "programs", "-q").strip())

    def bpftool_all(n):
        pin = place.pins / f"p_{n}"
        load = timed("prog", "load", world.object(PLAIN), pin)
        attach = timed("net", "attach", "xdp", "pinned", pin, "dev", "lo")
        detach = timed("net", "detach", "xdp", "dev", "lo")
        pin.unlink()
        add("bpftool load", load)
        add("bpftool, all", load + attach + detach)

    def bpftool_core(n):
        pin = place.pins / f"c_{n}"
        add("bpftool load, CO-RE", timed("prog", "load", world.object(CORE), pin))
        pin.unlink()

    def warm(_):
        add("warm service", world.client(sockets[0]))

    def activated(_):
        process = world.service(sockets[1], activated=True)
        add("activated service", world.client(sockets[1]))
        kill(process)

    cases = [command_line, command_line_core, bpftool_all, bpftool_core, warm, activated]
    sockets = [place.root / "run" / name for name in ["warm.sock", "activated.sock"]]
    listening = world.service(sockets[0], activated=False)
    try:
        for n in range(runs):
            turn = n % len(cases)
            for case in cases[turn:] + cases[:turn]:
                case(n)
    finally:
        kill(listening)


def listings(world, samples, runs):
    """`list programs -o json` of 10, 1000 and 10 000 records; some of the last have loaded programs."""
    there = 0
    for count in [10, 1000, 10_000]:
        more = count - there
        if count == 10_000:
            load = ["load", "file", "--path", world.object(PLAIN), "--programs", f"xdp:{PLAIN[1]}"]
            for _ in range(LIVING):
                world.said(*load)
            more -= LIVING
        bench.tool(world.helper, "records", world.place.root, more)
        there = count
        for _ in range(runs):
            samples.setdefault(f"list, {count}", []).append(world.ours("list", "programs", "-o", "json"))
    assert len(json.loads(world.said("list", "programs", "-o", "json"))) == 10_000
    for _ in range(runs):
        samples.setdefault("list --stats", []).append(world.ours("list", "programs", "--stats", "-o", "json"))
        samples.setdefault("load beside 10000", []).append(
            world.ours("load", "file", "--path", world.object(PLAIN), "--programs", f"xdp:{PLAIN[1]}")
        )


def many(world, samples, peaks, runs):
    """A start, a stop and commands that read all records, with none and with 100 000 records of running containers."""
    place = world.place
    token = {bench.PREFIX + "delegate": "networking"}
    bundle = place.bundle("token", token)
    lists = [("list", what, "-o", form) for what in ["containers", "programs", "links"] for form in ["table", "json"]]
    # That of the last load, without a link.
    world.said("load", "file", "--path", world.object(PLAIN), "--programs", f"xdp:{PLAIN[1]}")
    program = world.said("list", "programs", "-q").split()[-1]

    def add(case, sample):
        samples.setdefault(case, []).append(sample[0])
        peaks[case] = max(peaks.get(case, 0), sample[1])

    with contextlib.ExitStack() as living:
        inits = [living.enter_context(bench.Container(place)) for _ in range(100)]
        for count in [0, MANY]:
            if count:
                bench.tool(world.helper, "records", place.root, count, program, *(init.pid for init in inits))
            for n in range(runs):
                name = f"many-{count}-{n}"
                with bench.Container(place) as container:
                    add(f"start, {count}", bench.hook(place, "createRuntime", bench.state(bundle, name, token, container.pid)))
                add(f"poststop, {count}", bench.hook(place, "poststop", bench.state(bundle, name, token)))
            for words in [("gc",), *lists]:
                for _ in range(max(3, runs // 5)):
                    add(f"{' '.join(words)}, {count}", bench.timed(place, None, place.binary, "--root", place.root, *words))


def tallies(world, samples, runs):
    for n in range(runs):
        words = [world.helper, "tally", world.place.root / f"run/tally{n}", "200"]
        samples.setdefault("recording a start", []).append(
            int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1e9
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the bpfman-hook to measure")
    parser.add_argument("--helper", type=Path, required=True, help="the binary of benches/manual.rs")
    parser.add_argument("--floors", type=Path, required=True, help="the directory of run")
    parser.add_argument("--runs", type=int, default=100)
    figures.arguments(parser)
    options = parser.parse_args()
    benchmark = figures.Benchmark("commands", options)
    if not os.environ.get("BENCH_OWN_NETWORK"):
        os.environ["BENCH_OWN_NETWORK"] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])

    lock = open("/run/bpfman-hook-test.lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    place = bench.Place(options.binary.resolve(), options.floors.resolve(), "counter", "count")
    world = World(place, options.helper.resolve())
    try:
        measure(world, {}, 3)
        samples, peaks = {}, {}
        measure(world, samples, options.runs)
        tallies(world, samples, max(5, options.runs // 5))
        listings(world, samples, max(5, options.runs // 5))
    finally:
        world.remove()
    place = bench.Place(options.binary.resolve(), options.floors.resolve(), "counter", "count")
    world = World(place, options.helper.resolve())
    try:
        many(world, samples, peaks, max(5, options.runs // 5))
    finally:
        world.remove()

    rng = random.Random(1)
    medians = {case: bench.resampled(values, rng) for case, values in samples.items()}
    of = lambda case: statistics.median(samples[case])
    print("manual commands, median and 95 % interval in ms")
    for case, values in samples.items():
        low, high = bench.interval(medians[case])
        peak = f", {peaks[case] / 1024:.1f} MiB" if case in peaks else ""
        print(
            f"  {case:34} {bench.milliseconds(of(case))}  [{bench.milliseconds(low)} {bench.milliseconds(high)}]  {len(values)} runs{peak}"
        )

    ratio = lambda a, b: (of(a) / of(b), lambda i: medians[a][i] / medians[b][i])
    looks = sorted({case.split(",")[0] for case in peaks if case.startswith("list ")})
    memory = lambda case, limit: (f"{case}, peak", peaks[f"{case}, {MANY}"] / 1024, lambda _: peaks[f"{case}, {MANY}"] / 1024, limit, "MiB")
    aims = [
        ("load / bpftool", *ratio("load", "bpftool load"), 2.0, "x"),
        ("load / bpftool, CO-RE", *ratio("load, CO-RE", "bpftool load, CO-RE"), 1.0, "x"),
        ("all three / bpftool", *ratio("load, attach, unload", "bpftool, all"), None, "x"),
        ("warm service / bpftool", *ratio("warm service", "bpftool, all"), None, "x"),
        (
            "activation adds",
            (of("activated service") - of("warm service")) * 1e3,
            lambda i: (medians["activated service"][i] - medians["warm service"][i]) * 1e3,
            20.0,
            "ms",
        ),
        ("activated / warm service", *ratio("activated service", "warm service"), None, "x"),
        ("list of 10000 as JSON", of("list, 10000") * 1e3, lambda i: medians["list, 10000"][i] * 1e3, 100.0, "ms"),
        ("list of 10000 / bpftool load", *ratio("list, 10000", "bpftool load"), None, "x"),
        *(
            (f"{case} beside {MANY}", *ratio(f"{case}, {MANY}", f"{case}, 0"), 1.1, "x")
            for case in ["start", "poststop"]
        ),
        *(memory(case, 12 if case in ["start", "poststop"] else 64) for case in ["start", "poststop", *looks]),
        *(
            (f"{case} of {MANY}", of(f"{case}, {MANY}"), lambda i, case=case: medians[f"{case}, {MANY}"][i], 1.0, "s")
            for case in ["gc", *looks]
        ),
        *((f"{case} of {MANY} / bpftool load", *ratio(f"{case}, {MANY}", "bpftool load"), None, "x") for case in ["gc", *looks]),
        ("recording a start", of("recording a start") * 1e6, lambda i: medians["recording a start"][i] * 1e6, None, "µs"),
    ]
    spread = lambda resample: bench.interval([resample(i) for i in range(2000)])
    return benchmark.report(figures.Figure(name, value, unit, limit, spread(resample)) for name, value, resample, limit, unit in aims)


if __name__ == "__main__":
    sys.exit(main())
