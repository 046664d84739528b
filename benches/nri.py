#!/usr/bin/env python3
"""Times the NRI plugin from the other end of its socket: sequential CreateContainer calls, and a Synchronize of 10 000 containers.

Plays the runtime's role, with requests recorded from containerd 2.1.9 (tests/data/nri). A round trip begins before the first
byte is written and ends when the whole response has been read; the interpreter's time for that is included.
"""

import argparse
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures

DATA = Path(__file__).resolve().parent.parent / "tests/data/nri"
PLUGIN, RUNTIME = 1, 2
REQUEST, RESPONSE = 1, 2
SERVICE = "nri.pkg.api.v1alpha1.Plugin"
POLICY = '[[image]]\nrepository = "registry.example/**"\nunsigned = true\n[[container]]\nprograms = ["xdp"]\n'
OURS = {
    "hook.bpfman.io/image": "registry.example/net/count:v1",
    "hook.bpfman.io/programs": "xdp:count iface=eth0",
    "hook.bpfman.io/pull-policy": "Never",
}
CONTAINERS, ASKING = 10_000, 200


# The parts of protocol buffers that are needed.


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data):
    """The fields of a message as (number, value), numbers and lengths decoded."""
    at = 0

    def number():
        nonlocal at
        n = shift = 0
        while True:
            byte = data[at]
            at += 1
            n |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return n

    while at < len(data):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            size = number()
            yield key >> 3, data[at : at + size]
            at += size


def message(pairs):
    return b"".join(field(number, value) for number, value in pairs)


def entry(key, value):
    return field(1, key) + field(2, value)


def replaced(data, **new):
    """A pod or a container with some of its fields replaced; `annotations` replace all existing ones."""
    numbers = {"id": 1, "pod": 2, "state": 4, "annotations": 6}
    gone = {numbers[name] for name in new}
    pairs = [pair for pair in fields(data) if pair[0] not in gone]
    for name, value in new.items():
        if name == "annotations":
            pairs += [(6, entry(*item)) for item in value.items()]
        else:
            pairs.append((numbers[name], value))
    return message(pairs)


class Runtime:
    """The runtime's end of a plugin's connection."""

    def __init__(self, stream):
        self.stream, self.number, self.buffers = stream, -1, {PLUGIN: b"", RUNTIME: b""}

    def exactly(self, size):
        data = b""
        while len(data) < size:
            part = self.stream.recv(size - len(data))
            if not part:
                sys.exit("the plugin has disconnected")
            data += part
        return data

    def send(self, connection, number, kind, body):
        data = struct.pack(">IIBB", len(body), number, kind, 0) + body
        parts = [data[at : at + 4096] for at in range(0, len(data), 4096)]
        self.stream.sendall(b"".join(struct.pack(">II", connection, len(part)) + part for part in parts))

    def receive(self, connection):
        while True:
            data = self.buffers[connection]
            if len(data) >= 10:
                size, number, kind, _ = struct.unpack(">IIBB", data[:10])
                if len(data) >= 10 + size:
                    self.buffers[connection] = data[10 + size :]
                    return number, kind, data[10 : 10 + size]
            other, size = struct.unpack(">II", self.exactly(8))
            self.buffers[other] += self.exactly(size)

    def register(self):
        number, kind, _ = self.receive(RUNTIME)
        assert kind == REQUEST
        self.send(RUNTIME, number, RESPONSE, b"")

    def call(self, method, payload):
        self.number += 2
        self.send(PLUGIN, self.number, REQUEST, message([(1, SERVICE), (2, method), (3, payload)]))
        number, kind, body = self.receive(PLUGIN)
        assert (number, kind) == (self.number, RESPONSE)
        answer = dict(fields(body))
        if 1 in answer and dict(fields(answer[1])).get(1):
            sys.exit(f"{method}: {dict(fields(answer[1]))[2].decode()}")
        return answer.get(2, b"")


def memory(pid, key):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    sys.exit(f"/proc/{pid}/status has no {key}")


def round_trips(runtime, payload, runs, expect):
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        answer = runtime.call("CreateContainer", payload)
        times.append(time.perf_counter() - begun)
        assert (b"createRuntime" in answer) == expect, answer
    return sorted(times)


def synchronize(runtime, pod, container, pid):
    """Splits like NRI's Go side: into messages of the maximum size."""
    pieces, piece, size = [], [], 0
    for n in range(CONTAINERS):
        annotations = OURS if n % (CONTAINERS // ASKING) == 0 else {"example.org/owner": "net"}
        one = field(1, replaced(pod, id=f"pod-{n}", annotations=annotations))
        one += field(2, replaced(container, id=f"container-{n}", pod=f"pod-{n}", state=3, annotations={}))
        if size + len(one) > 3 << 20:
            pieces.append(piece)
            piece, size = [], 0
        piece.append(one)
        size += len(one)
    pieces.append(piece)
    payloads = [b"".join(piece) + (field(3, 1) if piece is not pieces[-1] else b"") for piece in pieces]
    before = memory(pid, "VmRSS")
    begun = time.perf_counter()
    for payload in payloads:
        runtime.call("Synchronize", payload)
    return time.perf_counter() - begun, memory(pid, "VmHWM") - before, sum(map(len, payloads)), len(payloads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the bpfman-hook to measure")
    parser.add_argument("--runs", type=int, default=2000)
    figures.arguments(parser)
    options = parser.parse_args()
    benchmark = figures.Benchmark("nri", options)

    directory = Path(tempfile.mkdtemp(prefix="bpfman-hook-bench-", dir="/var/lib"))
    os.chmod(directory, 0o755)
    policy = directory / "etc/bpfman-hook/policy.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text(POLICY)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "nri.sock"))
    listener.listen()
    listener.settimeout(20)
    words = [options.binary.resolve(), "--root", directory, "nri", "--socket", directory / "nri.sock"]
    plugin = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        stream = listener.accept()[0]
        stream.settimeout(20)
        runtime = Runtime(stream)
        runtime.register()
        runtime.call("Configure", (DATA / "containerd-2.1.9_Configure.bin").read_bytes())
        runtime.call("Synchronize", b"")
        request = dict(fields((DATA / "containerd-2.1.9_CreateContainer.bin").read_bytes()))
        pod, container = request[1], replaced(request[2], annotations={})
        cases = {}
        for name, annotations in [("unannotated", {"example.org/owner": "net"}), ("annotated", OURS)]:
            payload = field(1, replaced(pod, annotations=annotations)) + field(2, container)
            round_trips(runtime, payload, 50, name == "annotated")
            cases[name] = round_trips(runtime, payload, options.runs, name == "annotated")
        took, grown, size, pieces = synchronize(runtime, pod, container, plugin.pid)
    finally:
        plugin.kill()
        plugin.wait()
        shutil.rmtree(directory)

    at = lambda name, share: cases[name][int(share * (len(cases[name]) - 1))] * 1e6
    print(f"CreateContainer at the socket, {options.runs} calls each, in µs")
    for name in cases:
        print(f"  {name:12} p50 {at(name, 0.5):6.0f}   p99 {at(name, 0.99):6.0f}   longest {at(name, 1):6.0f}")
    print(f"Synchronize of {CONTAINERS} containers, {ASKING} of which are annotated: {size / 1e6:.1f} MB in {pieces} messages")
    return benchmark.report(
        [
            figures.Figure("unannotated, p50", at("unannotated", 0.5), "µs", 200),
            figures.Figure("unannotated, p99", at("unannotated", 0.99), "µs", 1000),
            figures.Figure("annotated, p99", at("annotated", 0.99), "µs", 5000),
            figures.Figure("annotated / unannotated, p50", at("annotated", 0.5) / at("unannotated", 0.5), "x"),
            figures.Figure("Synchronize", took * 1e3, "ms", 1000),
            figures.Figure("Synchronize, each / unannotated", took * 1e6 / CONTAINERS / at("unannotated", 0.5), "x"),
            figures.Figure("its growth at the peak", grown, "MiB", 64),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
