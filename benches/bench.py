#!/usr/bin/env python3
"""Times the hook process itself, from fork to exit, against its floors. Needs only Python's standard library and runc.

Each sample has a running container of its own: a process in new namespaces, in the state of a runtime's container at
createRuntime. The cases alternate, so that other load on the machine affects all of them. Prints medians, with 95 % intervals
from 2000 bootstrap samples; ratios are of medians of the same resampling.
"""

import argparse
import fcntl
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import figures

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
PREFIX = "hook.bpfman.io/"


class Place:
    """A directory with only root-owned path components, with an image, a policy and a bpffs for bpftool."""

    def __init__(self, binary, floors, object_name, program):
        self.dir = Path(tempfile.mkdtemp(prefix="bpfman-hook-bench-", dir="/var/lib"))
        os.chmod(self.dir, 0o755)
        self.floors, self.program = floors, program
        # A copy, like that of `install`: the page cache holds a copied file in larger pieces than a file written by a linker.
        self.binary = Path(shutil.copy(binary, self.dir / "bpfman-hook"))
        self.root = self.dir / "root"
        self.object = TESTS / "bpf" / f"{object_name}.bpf.o"
        self.rootfs = self.dir / "rootfs"
        self.pins = self.dir / "pins"
        for path in [self.root / "etc/bpfman-hook/keys", self.root / "run", self.rootfs / "sys", self.rootfs / "run", self.pins]:
            path.mkdir(parents=True)
        for path in [self.rootfs, self.rootfs / "sys", self.rootfs / "run"]:
            os.chown(path, 100000, 100000)
        # The store is in memory, as below a host's /run.
        tool("mount", "-t", "tmpfs", "-o", "mode=755", "none", self.root / "run")
        tool("mount", "-t", "bpf", "none", self.pins)
        tool("bpftool", "prog", "load", self.object, self.pins / "attached")
        key, public = self.dir / "bench.key", self.root / "etc/bpfman-hook/keys/bench.pub"
        tool("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        tool("openssl", "ec", "-in", key, "-pubout", "-out", public)
        tool(TESTS / "demo/image.sh", self.object, self.dir / "image", "v1", key)
        (self.root / "etc/bpfman-hook/policy.toml").write_text(
            f'[[image]]\nname = "bench"\nrepository = "oci:{self.dir}/image"\nsigned-by = {{ key = "{public}" }}\n'
            '[[container]]\nprograms = ["xdp"]\ndelegate = ["networking", "sockets"]\nhost-scope = true\n'
        )

    def bundle(self, name, annotations):
        """A bundle with the root file system that all containers share."""
        capabilities = ["CAP_BPF", "CAP_NET_ADMIN"]
        ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        kinds = ["user", "mount", "network", "ipc", "uts", "cgroup"]
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "cwd": "/",
                "args": ["/bin/true"],
                "capabilities": {one: capabilities for one in ["bounding", "effective", "permitted", "inheritable", "ambient"]},
            },
            "root": {"path": str(self.rootfs)},
            "mounts": [
                {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
            ],
            "annotations": annotations,
            "linux": {"namespaces": [{"type": kind} for kind in kinds], "uidMappings": ids, "gidMappings": ids},
        }
        path = self.dir / name
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(config))
        return path

    def remove(self):
        for mount in [self.root / "run/bpfman-hook/fs", self.root / "run", self.pins]:
            subprocess.run(["umount", "-l", mount], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.dir)


def tool(*words):
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Container:
    """A running container; `with` ends it."""

    def __init__(self, place):
        self.process = subprocess.Popen(
            [place.floors / "container", place.rootfs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def timed(place, state, *words):
    """Seconds and KiB of one process with the state on its standard input; it must succeed."""
    file = place.dir / "state.json"
    file.write_text(json.dumps(state) if state else "{}")
    run = subprocess.run([place.floors / "run", file, *map(str, words)], capture_output=True, text=True, check=True)
    nanoseconds, kib, status = map(int, run.stdout.split())
    if status:
        sys.exit(f"{' '.join(map(str, words))}: exit status {status}: {run.stderr}")
    return nanoseconds / 1e9, kib


def hook(place, stage, state):
    return timed(place, state, place.binary, "hook", stage, "--root", place.root)


def state(bundle, name, annotations, pid=None):
    all_of_it = {"ociVersion": "1.0.2-dev", "id": name, "status": "creating" if pid else "stopped", "bundle": str(bundle)}
    if pid:
        all_of_it["pid"] = pid
    if annotations:
        all_of_it["annotations"] = annotations
    return all_of_it


class Samples:
    def __init__(self):
        self.seconds, self.kib = {}, {}

    def add(self, case, sample):
        self.seconds.setdefault(case, []).append(sample[0])
        self.kib[case] = max(self.kib.get(case, 0), sample[1])


def measure(place, samples, runs):
    """Runs every case once per round, in a rotating order."""
    image = {PREFIX + "image": f"oci:{place.dir}/image:v1", PREFIX + "programs": f"xdp:{place.program} iface=lo"}
    token = {PREFIX + "delegate": "networking"}
    plain = {"io.example/unrelated": "yes"}
    bundles = {"unannotated": place.bundle("plain", plain), "token": place.bundle("token", token), "xdp": place.bundle("xdp", image)}

    def floor_0(n):
        samples.add("F0", timed(place, {}, place.floors / "f0"))

    def floor_1(n):
        with Container(place) as container:
            samples.add("F1", timed(place, {"pid": container.pid}, place.floors / "f1", place.rootfs))

    def floor_2(n):
        with Container(place) as container:
            link = place.pins / f"link_{n}"
            samples.add("F2", timed(place, None, place.floors / "f2", container.pid, place.pins / "attached", link))
            link.unlink()

    def bpftool(n):
        pin = place.pins / f"prog_{n}"
        samples.add("bpftool", timed(place, None, shutil.which("bpftool"), "prog", "load", place.object, pin))
        pin.unlink()

    def ours(case, annotations):
        def run(n):
            name = f"bench-{case}-{n}"
            with Container(place) as container:
                samples.add(case, hook(place, "createRuntime", state(bundles[case], name, annotations, container.pid)))
            stop = hook(place, "poststop", state(bundles[case], name, annotations))
            if case == "xdp":
                samples.add("poststop", stop)

        return run

    cases = [floor_0, floor_1, floor_2, bpftool, ours("unannotated", plain), ours("token", token), ours("xdp", image)]
    for n in range(runs):
        turn = n % len(cases)
        for case in cases[turn:] + cases[:turn]:
            case(n)


def runc_start_to_finish(place, hooks, runs):
    """Seconds of `runc run` of /bin/true with the XDP request, with and without our hooks."""
    bundle = place.dir / "runc"
    (bundle / "rootfs/bin").mkdir(parents=True, exist_ok=True)
    for part in ["proc", "sys", "dev"]:
        (bundle / "rootfs" / part).mkdir(exist_ok=True)
    shutil.copy("/bin/busybox", bundle / "rootfs/bin/true")
    (bundle / "config.json").unlink(missing_ok=True)
    tool("runc", "spec", "-b", bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update({"terminal": False, "rlimits": [], "args": ["/bin/true"]})
    config["annotations"] = {PREFIX + "image": f"oci:{place.dir}/image:v1", PREFIX + "programs": f"xdp:{place.program} iface=lo"}
    if hooks:
        one = lambda stage: [{"path": str(place.binary), "args": ["bpfman-hook", "hook", stage, "--root", str(place.root)]}]
        config["hooks"] = {"createRuntime": one("createRuntime"), "poststop": one("poststop")}
    (bundle / "config.json").write_text(json.dumps(config))
    words = [shutil.which("runc"), "--root", place.dir / "runc-state", "run", "-b", bundle]
    return [timed(place, None, *words, f"bench-runc-{n}")[0] for n in range(runs)]


def resampled(values, rng, times=2000):
    return [statistics.median(rng.choices(values, k=len(values))) for _ in range(times)]


def interval(medians):
    ordered = sorted(medians)
    return ordered[int(len(ordered) * 0.025)], ordered[int(len(ordered) * 0.975)]


def milliseconds(seconds):
    return f"{seconds * 1e3:8.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the bpfman-hook to measure")
    parser.add_argument("--floors", type=Path, required=True, help="the directory of f0, f1, run and container")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--object", default="counter", help="an object of tests/bpf with one XDP program and no CO-RE records")
    parser.add_argument("--program", default="count", help="the program in it")
    figures.arguments(parser)
    options = parser.parse_args()
    benchmark = figures.Benchmark("hooks", options)

    # The tests create BPF objects and mounts too, and would report ours as left behind.
    lock = open("/run/bpfman-hook-test.lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    place = Place(options.binary.resolve(), options.floors.resolve(), options.object, options.program)
    try:
        measure(place, Samples(), 5)
        samples = Samples()
        measure(place, samples, options.runs)
        whole = {hooks: runc_start_to_finish(place, hooks, max(5, options.runs // 15)) for hooks in [False, True]}
    finally:
        place.remove()

    rng = random.Random(1)
    medians = {case: resampled(values, rng) for case, values in samples.seconds.items()}
    print(f"{options.runs} alternating runs per case, median and 95 % interval in ms, peak memory in KiB")
    for case, values in samples.seconds.items():
        low, high = interval(medians[case])
        middle = statistics.median(values)
        print(f"  {case:12} {milliseconds(middle)}  [{milliseconds(low)} {milliseconds(high)}]  {samples.kib[case]:7}")

    print("\nrunc start to finish, ms (no target: its noise exceeds our cost)")
    for hooks, values in whole.items():
        low, high = interval(resampled(values, rng))
        print(f"  {'with' if hooks else 'without'} hooks {milliseconds(statistics.median(values))}  [{milliseconds(low)} {milliseconds(high)}]")

    def figure(name, unit, target, value):
        """A figure that `value` computes from the medians of the cases: of all samples, and of each resampling."""
        middle = value(lambda case: statistics.median(samples.seconds[case]))
        spread = interval([value(lambda case: medians[case][i]) for i in range(2000)])
        return figures.Figure(name, middle, unit, target, spread)

    return benchmark.report(
        [
            figure("unannotated - F0", "ms", 0.5, lambda of: (of("unannotated") - of("F0")) * 1e3),
            figure("unannotated / F0", "x", None, lambda of: of("unannotated") / of("F0")),
            figure("token / F1", "x", 1.6, lambda of: of("token") / of("F1")),
            figure("(xdp - F2) / bpftool", "x", 3.0, lambda of: (of("xdp") - of("F2")) / of("bpftool")),
            figure("(xdp - F0) / bpftool", "x", None, lambda of: (of("xdp") - of("F0")) / of("bpftool")),
            figure("poststop - F0", "ms", 0.9, lambda of: (of("poststop") - of("F0")) * 1e3),
            figure("poststop / F0", "x", None, lambda of: of("poststop") / of("F0")),
            figures.Figure("peak memory, xdp", samples.kib["xdp"] / 1024, "MiB", 10),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
