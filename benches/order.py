#!/usr/bin/env python3
"""Writes benches/start.order: the functions that a start and a stop call, in the order of their first call.

The linker puts them next to each other in that order (build.rs), so that a start touches a few pages of code instead of some hundred.
Needs root, and a binary with symbols: `make order`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import bench


def functions(binary):
    """Names of the functions by address, those of the C libraries too."""
    words = ["readelf", "--symbols", "--wide", str(binary)]
    found = {}
    for line in subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[3] == "FUNC" and fields[2] != "0" and fields[6] != "UND":
            found.setdefault(int(fields[1], 16), fields[7])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="a bpfman-hook of the profile dist, with symbols")
    parser.add_argument("--floors", type=Path, required=True, help="the directory of container and touched")
    options = parser.parse_args()
    names = functions(options.binary)
    if not names:
        sys.exit(f"{options.binary} has no symbols")
    place = bench.Place(options.binary.resolve(), options.floors.resolve(), "counter", "count")
    known, hits = place.dir / "functions", place.dir / "hits"
    known.write_text("\n".join(f"{address:x}" for address in names))
    try:
        token = {bench.PREFIX + "delegate": "networking"}
        image = {bench.PREFIX + "image": f"oci:{place.dir}/image:v1", bench.PREFIX + "programs": f"xdp:{place.program} iface=lo"}
        for case, annotations in {"unannotated": {"io.example/unrelated": "yes"}, "token": token, "xdp": image}.items():
            bundle = place.bundle(case, annotations)
            # The first start fetches, makes the store and mounts the bpffs.
            for n, prefix in enumerate([[], [place.floors / "touched", known, hits]]):
                name = f"order-{case}-{n}"
                with bench.Container(place) as container:
                    run(place, prefix, "createRuntime", bench.state(bundle, name, annotations, container.pid))
                run(place, prefix, "poststop", bench.state(bundle, name, annotations))
        order = dict.fromkeys(names[int(line, 16)] for line in hits.read_text().split())
    finally:
        place.remove()
    (bench.HERE / "start.order").write_text("".join(f"{name}\n" for name in order))
    print(f"{len(order)} of {len(names)} functions")


def run(place, prefix, stage, state):
    words = [*prefix, place.binary, "hook", stage, "--root", place.root]
    subprocess.run([str(word) for word in words], input=json.dumps(state), text=True, check=True)


if __name__ == "__main__":
    sys.exit(main())
