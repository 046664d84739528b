#!/bin/bash
# build.sh OUT some|all   builds the clients of the proxy into OUT: `some` that `make test` runs, or `all`.
#
# What is not installed comes from Debian (tests/lab/suite.sh) and crates.io. Exit status 77, with the reason, where it cannot be
# had; any other but 0 is a failure.
set -eu
[ $# = 2 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

bpftool gen skeleton "$here/../bpf/client.bpf.o" name client >"$out/client.skel.h"

# With the headers and the library of a suite, whose C library can be newer than this machine's.
libbpf() {
  local tree
  tree=$("$here/trees.sh" "$1") || { status=$?; echo "$tree"; exit "$status"; }
  mkdir -p "$out/include-$1"
  cp -r "$tree/usr/include/bpf" "$out/include-$1/"
  gcc -O2 -Wall -Wextra -Werror -I"$out" -I"$out/include-$1" -o "$out/libbpf-$1" "$here/libbpf.c" \
    "$tree/usr/lib/$(uname -m)-linux-gnu/libbpf.so.1" -Wl,--allow-shlib-undefined
}
libbpf bookworm
[ "$2" = all ] || exit 0

openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=clients -days 365 -keyout "$out/key.pem" -out "$out/certificate.pem" 2>/dev/null
chmod 644 "$out/key.pem"

libbpf sid

cargo fetch --quiet --locked --manifest-path "$here/rust/Cargo.toml" >&2 || { echo "the crates of tests/clients/rust cannot be fetched"; exit 77; }
target=$(rustc -vV | sed -n 's/^host: //p')
cargo build --quiet --locked --manifest-path "$here/rust/Cargo.toml" --target "$target" --target-dir "$out/rust" >&2
cp "$out/rust/$target/debug/"{aya_0_13,aya_0_14,libbpf_rs} "$out/"

# Go and the library of each suite, in its root file system.
for suite in bookworm sid; do
  tree=$("$here/trees.sh" "$suite-go") || { status=$?; echo "$tree"; exit "$status"; }
  mkdir -p "$out/go"
  # shellcheck disable=SC2016 # for the inner shell
  unshare -m sh -euc 'mount --make-rprivate / && mount --bind "$2" "$1/run" && mount --bind "$3" "$1/tmp" && mount -t proc proc "$1/proc" &&
    mount --rbind /dev "$1/dev" && exec chroot "$1" /usr/bin/bash -euc "cd /run; \
    GOPATH=/usr/share/gocode GO111MODULE=off GOCACHE=/tmp/cache GOFLAGS=-trimpath CGO_ENABLED=0 HOME=/tmp PATH=/usr/bin /usr/lib/go-*/bin/go build -o /tmp/cilium ."' \
    sh "$tree" "$here/cilium" "$out/go" >&2
  mv "$out/go/cilium" "$out/cilium-$suite"
  zcat "$tree/usr/share/doc/golang-github-cilium-ebpf-dev/changelog.Debian.gz" | sed -n '1s/[^(]*(\([0-9.]*\).*/version \1/p' >"$out/cilium-$suite.version"
done
