#!/usr/bin/env python3
"""Times the cost of images: a start from a cached image, a cold pull compared with skopeo and cosign, ten parallel pulls compared with one.

Debian's docker-registry on a loopback port, and for the last case a proxy in front of it that delays each response. Medians of
alternating runs. Needs root, docker-registry, skopeo, openssl; cosign comes from another Debian suite, if available.
"""

import argparse
import fcntl
import http.client
import http.server
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import bench
import figures

DELAY = 0.050
IMAGES = 10


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Registry:
    """docker-registry with its blobs in a directory."""

    def __init__(self, directory):
        self.host = f"127.0.0.1:{free_port()}"
        directory.mkdir()
        config = directory / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {directory}/data }}\n"
            f'http: {{ addr: "{self.host}" }}\n'
        )
        self.process = subprocess.Popen(
            ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(tuple(self.host.split(":"))).close()
                return
            except OSError:
                if time.monotonic() > end:
                    sys.exit("docker-registry does not answer")
                time.sleep(0.01)

    def end(self):
        self.process.terminate()
        self.process.wait()


def slow_proxy(to):
    """A proxy in front of a registry that delays each response by this time."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            time.sleep(DELAY)
            upstream = http.client.HTTPConnection(to)
            upstream.request("GET", self.path, headers={"Accept": self.headers.get("Accept", "*/*")})
            answer = upstream.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            upstream.close()

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        # Ten pulls connect at once; with the default backlog of five, the kernel makes some of them retry a second later.
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}"


def cosign():
    """The cosign of Debian trixie, unpacked beside the system; None if it is not available."""
    suite = Path(__file__).resolve().parent.parent / "tests/lab/suite.sh"
    run = subprocess.run([suite, "trixie", "cosign"], capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"cosign is not available, so the cold pull has no comparison: {run.stdout.strip() or run.stderr.strip()}")
        return None
    found = sorted(Path(run.stdout.strip().splitlines()[-1]).glob("**/bin/cosign"))
    return found[0] if found else None


class World:
    """Ten signed images in a registry, and a root that trusts their key."""

    def __init__(self, place):
        self.place = place
        self.key = place.dir / "bench.key"
        self.public = place.root / "etc/bpfman-hook/keys/bench.pub"
        self.registry = Registry(place.dir / "registry")
        self.slow = slow_proxy(self.registry.host)
        for n in range(IMAGES):
            # Bytes after the sections make it a different object, so that no two images share a blob.
            changed = place.dir / "objects" / str(n) / place.object.name
            changed.parent.mkdir(parents=True)
            changed.write_bytes(place.object.read_bytes() + bytes(n + 1))
            layout = place.dir / "layouts" / str(n)
            layout.parent.mkdir(exist_ok=True)
            bench.tool(bench.TESTS / "demo/image.sh", changed, layout, "v1", self.key)
            self.ours("image", "push", f"oci:{layout}:v1", self.name(n))
        rules = "".join(
            f'[[image]]\nname = "r{n}"\nrepository = "{host}/bench/*"\nsigned-by = {{ key = "{self.public}" }}\n'
            for n, host in enumerate([self.registry.host, self.slow])
        )
        (place.root / "etc/bpfman-hook/policy.toml").write_text(
            f'{rules}[[image]]\nname = "file"\nrepository = "file:{place.dir}/objects/0/{place.object.name}"\nunsigned = true\n'
            '[[container]]\nprograms = ["xdp"]\n'
        )

    def name(self, n, host=None):
        return f"{host or self.registry.host}/bench/image{n}:v1"

    def ours(self, *words):
        bench.tool(self.place.binary, "--root", self.place.root, *words)

    def forget(self):
        shutil.rmtree(self.place.root / "var/cache/bpfman-hook", ignore_errors=True)


def seconds(work):
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def measure(world, runs, tool):
    """Samples by case, in seconds."""
    place, samples = world.place, {}
    add = lambda case, value: samples.setdefault(case, []).append(value)
    program = {bench.PREFIX + "programs": f"xdp:{place.program} iface=lo"}
    wanted = {
        "start, file": {**program, bench.PREFIX + "image": f"file:{place.dir}/objects/0/{place.object.name}"},
        "start, cached": {**program, bench.PREFIX + "image": world.name(0)},
    }
    bundles = {case: place.bundle(case.replace(", ", "-"), annotations) for case, annotations in wanted.items()}
    home = {**os.environ, "HOME": str(place.dir)}

    def start(case, n):
        name = f"bench-images-{n}"
        with bench.Container(place) as container:
            state = bench.state(bundles[case], name, wanted[case], container.pid)
            add(case, bench.hook(place, "createRuntime", state)[0])
        bench.hook(place, "poststop", bench.state(bundles[case], name, wanted[case]))

    def others():
        target = place.dir / "copied"
        shutil.rmtree(target, ignore_errors=True)
        bench.tool("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{world.name(0)}", f"dir:{target}")
        words = [tool, "verify", "--key", world.public, "--insecure-ignore-tlog", "--allow-http-registry", world.name(0)]
        subprocess.run(words, check=True, env=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    for n in range(runs):
        world.forget()
        add("pull, cold", seconds(lambda: world.ours("pull", "--quiet", world.name(0))))
        for case in sorted(wanted, key=lambda _: random.random()):
            start(case, n)
        if tool:
            add("skopeo + cosign", seconds(others))
        if n < max(3, runs // 10):
            world.forget()
            add("slow, one", seconds(lambda: world.ours("pull", "-q", world.name(0, world.slow))))
            world.forget()
            names = [world.name(image, world.slow) for image in range(IMAGES)]
            add("slow, ten", seconds(lambda: world.ours("pull", "-q", *names)))
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the bpfman-hook to measure")
    parser.add_argument("--floors", type=Path, required=True, help="the directory of run and container")
    parser.add_argument("--runs", type=int, default=50)
    figures.arguments(parser)
    options = parser.parse_args()
    benchmark = figures.Benchmark("images", options)

    lock = open("/run/bpfman-hook-test.lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    tool = cosign()
    place = bench.Place(options.binary.resolve(), options.floors.resolve(), "counter", "count")
    world = None
    try:
        world = World(place)
        samples = measure(world, options.runs, tool)
    finally:
        if world:
            world.registry.end()
        place.remove()

    rng = random.Random(1)
    print("median and 95 % interval in ms")
    for case, values in samples.items():
        low, high = bench.interval(bench.resampled(values, rng))
        middle = statistics.median(values)
        print(f"  {case:16} {bench.milliseconds(middle)}  [{bench.milliseconds(low)} {bench.milliseconds(high)}]  {len(values)} runs")

    of = lambda case: statistics.median(samples[case])
    results = [
        figures.Figure("start, cached - file", (of("start, cached") - of("start, file")) * 1e3, "ms", 1.0),
        figures.Figure("start, cached / file", of("start, cached") / of("start, file"), "x"),
        figures.Figure("pull, cold", of("pull, cold") * 1e3, "ms", 150.0),
        figures.Figure("pull, cold / start, cached", of("pull, cold") / of("start, cached"), "x"),
        figures.Figure("ten at once / one", of("slow, ten") / of("slow, one"), "x", 3.0),
    ]
    if tool:
        results.append(figures.Figure("pull / (skopeo + cosign)", of("pull, cold") / of("skopeo + cosign"), "x", 0.5))
    return benchmark.report(results)


if __name__ == "__main__":
    sys.exit(main())
