#!/bin/sh
# build.sh OUT   builds bpfman's own gRPC client into OUT and prints where it is. The code that its authors generated comes from
# their crate, which alone is fetched: what that crate depends on is not needed. Exit status 77 where it cannot be had.
set -eu

[ $# = 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
crate=bpfman-api-0.6.0
archive() { find "${CARGO_HOME:-$HOME/.cargo}/registry/cache" -name "$crate.crate" 2>/dev/null | head -n 1; }

[ -n "$(archive)" ] || cargo info --quiet bpfman-api@0.6.0 >/dev/null 2>&1 || true
[ -n "$(archive)" ] || { echo "SKIPPED: the crate $crate cannot be fetched" >&2; exit 77; }
tar -xzf "$(archive)" -C "$out" --strip-components 2 "$crate/src/bpfman.v1.rs"
target=$(rustc -vV | sed -n 's/^host: //p')
BPFMAN_V1=$out/bpfman.v1.rs cargo build --quiet --locked --manifest-path "$here/Cargo.toml" --target "$target" --target-dir "$out" >&2
echo "$out/$target/debug/bpfman-client"
