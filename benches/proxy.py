#!/usr/bin/env python3
"""Times bpf(2) in containers of runc: with the capabilities that a container needs without the proxy, and without any capability
through the proxy.

Pairs of containers run alternately, with one and with the other, and each figure is the median over the containers of the
difference between the medians of their calls. The third kind of container has no listener, but as many other rules of seccomp.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median

import figures

SETS = ["bounding", "effective", "permitted", "inheritable", "ambient"]
KINDS = ["MAP_CREATE", "PROG_LOAD", "MAP_LOOKUP_ELEM", "getppid"]
POLICY = '[[container]]\nproxy = ["sockets"]\n'
ASKED = {"hook.bpfman.io/delegate": "sockets", "hook.bpfman.io/delegate-via": "proxy"}


class Lab:
    """A directory with our root, a bundle, and a socket that starts a proxy for each connection, as the unit does."""

    def __init__(self, options):
        self.options = options
        # Every directory on the way to the policy must belong to root.
        self.dir = Path(tempfile.mkdtemp(prefix="bpfman-hook-bench-", dir="/var/lib"))
        self.root, self.bundle = self.dir / "root", self.dir / "bundle"
        (self.root / "etc/bpfman-hook").mkdir(parents=True)
        (self.root / "run/bpfman-hook").mkdir(parents=True)
        (self.root / "etc/bpfman-hook/policy.toml").write_text(POLICY)
        (self.bundle / "rootfs").mkdir(parents=True)
        for name in ["proc", "dev", "sys"]:
            (self.bundle / "rootfs" / name).mkdir()
        shutil.copy(Path(options.floors) / "proxy", self.bundle / "rootfs/proxy")
        self.profile = json.loads(self.output([options.binary, "--root", self.root, "proxy", "profile"]))
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.root / "run/bpfman-hook/proxy.sock"))
        self.listener.listen(8)
        threading.Thread(target=self.serve, daemon=True).start()

    def output(self, command):
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{command}: {done.stderr.strip()}")
        return done.stdout

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            proxy = subprocess.Popen(
                [self.options.binary, "--root", str(self.root), "proxy", "-"], stdin=connection.fileno(), stdout=subprocess.DEVNULL
            )
            connection.close()
            threading.Thread(target=proxy.wait, daemon=True).start()

    def hook(self, stage):
        words = ["bpfman-hook", "hook", stage, "--root", str(self.root)]
        return [{"path": self.options.binary, "args": words, "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "timeout": 30}]

    def medians(self, name, capabilities, seccomp, annotations):
        """The medians of one container's calls, in the order of KINDS."""
        config = self.bundle / "config.json"
        config.unlink(missing_ok=True)
        self.output(["runc", "spec", "-b", self.bundle])
        spec = json.loads(config.read_text())
        process = spec["process"]
        process.update(terminal=False, args=["/proxy", str(self.options.calls)], rlimits=[])
        process["capabilities"] = {which: capabilities for which in SETS}
        spec["linux"]["seccomp"] = seccomp
        spec["annotations"] = annotations
        if annotations:
            spec["hooks"] = {"createRuntime": self.hook("createRuntime"), "poststop": self.hook("poststop")}
        config.write_text(json.dumps(spec))
        said = self.output(["runc", "--root", self.dir / "runc", "run", "-b", self.bundle, f"{self.dir.name}-{name}"])
        return [float(word) for word in said.split()]

    def close(self):
        self.listener.close()
        subprocess.run(["umount", "-l", self.root / "run/bpfman-hook/fs"], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.dir)


def other_rules(profile):
    """A profile with as many rules as ours, about another system call, and no listener."""
    rule = {"names": ["acct"], "action": "SCMP_ACT_ERRNO"}
    rules = [
        {**rule, "args": [{"index": 0, "value": number, "op": "SCMP_CMP_EQ"}]} for number in range(len(profile["syscalls"]))
    ]
    return {**{key: value for key, value in profile.items() if not key.startswith("listener")}, "syscalls": rules}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--floors", required=True, help="directory with the compiled programs")
    parser.add_argument("--calls", type=int, default=1000, help="calls of each kind in a container")
    parser.add_argument("--containers", type=int, default=9, help="containers of each kind")
    figures.arguments(parser)
    options = parser.parse_args()
    options.binary = os.path.realpath(options.binary)
    benchmark = figures.Benchmark("proxy", options)
    lab = Lab(options)
    try:
        capable, proxied, ruled = [], [], []
        able = ["CAP_BPF", "CAP_NET_ADMIN"]
        for number in range(options.containers):
            capable.append(lab.medians(f"capable-{number}", able, None, {}))
            proxied.append(lab.medians(f"proxied-{number}", [], lab.profile, ASKED))
            ruled.append(lab.medians(f"ruled-{number}", able, other_rules(lab.profile), {}))
    finally:
        lab.close()
    for name, runs in [("with capabilities", capable), ("through the proxy", proxied), ("other rules", ruled)]:
        print(name, *(f"{kind} {median(run[at] for run in runs):.2f} µs" for at, kind in enumerate(KINDS)), sep="  ")

    def more(at, base):
        return median(one[at] - other[at] for one, other in zip(proxied, base))

    return benchmark.report(
        [
            figures.Figure("MAP_CREATE, more than with capabilities", more(0, capable), "µs", 40),
            figures.Figure("PROG_LOAD, more than with capabilities", more(1, capable), "µs", 60),
            figures.Figure("MAP_LOOKUP_ELEM, more than with other rules", more(2, ruled), "µs", 0.1),
            figures.Figure("getppid, more than with other rules", more(3, ruled), "µs", 0.1),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
