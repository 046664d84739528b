#!/bin/sh
# build.sh aya|cilium SOURCE OUT   builds a recipe of docs/tokens.md, a program in Rust or Go, into OUT and prints where it is.
# Exit status 77, with the reason, where its library cannot be had.
set -eu

[ $# = 3 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$3"
out=$(cd "$3" && pwd)
case $1 in
aya)
  mkdir -p "$out/src"
  cp "$here/aya/Cargo.toml" "$here/aya/Cargo.lock" "$out/"
  cmp -s "$2" "$out/src/main.rs" || cp "$2" "$out/src/main.rs"
  cargo fetch --quiet --locked --manifest-path "$out/Cargo.toml" >&2 || { echo "the crate aya cannot be fetched"; exit 77; }
  # It runs in a container that has no libraries.
  target=$(rustc -vV | sed -n 's/^host: //p')
  RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --manifest-path "$out/Cargo.toml" --target "$target" \
    --target-dir "$out/target" >&2
  echo "$out/target/$target/debug/recipe-aya"
  ;;
cilium)
  # Debian's compiler and library, in their own root file system.
  tree=$("$here/../clients/trees.sh" bookworm-go) || { status=$?; printf '%s\n' "$tree"; exit "$status"; }
  mkdir -p "$out/source"
  cp "$2" "$out/source/main.go"
  # shellcheck disable=SC2016 # for the inner shell
  unshare -m sh -euc 'mount --make-rprivate /
    mount --bind "$2" "$1/run"
    mount -t tmpfs tmpfs "$1/tmp"
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    exec chroot "$1" /usr/bin/bash -euc "cd /run/source; GOPATH=/usr/share/gocode GO111MODULE=off GOCACHE=/run/cache \
      GOFLAGS=-trimpath CGO_ENABLED=0 HOME=/tmp PATH=/usr/bin /usr/lib/go-*/bin/go build -o /run/recipe-cilium ."' \
    sh "$tree" "$out" >&2
  echo "$out/recipe-cilium"
  ;;
*) sed -n '2s/^# //p' "$0" >&2; exit 2 ;;
esac
