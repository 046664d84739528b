#!/bin/bash
# cross.sh ARCHITECTURE OUT CARGO-ARGUMENT...   runs cargo for another architecture with Debian's Rust and cross compiler.
#
# ARCHITECTURE: aarch64. OUT: cargo's target directory. Both compilers come from Debian sid, unpacked beside the system; crates come
# from this user's registry, which cargo fills before. Exit status 77, with the reason: they cannot be had here.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
[ "$1" = aarch64 ] || { echo "$0: there is no cross compiler for $1" >&2; exit 2; }
source=$(readlink -f "$(dirname "$0")/..")
triple=$1-unknown-linux-gnu
mkdir -p "$2"
out=$(readlink -e "$2")
shift 2
status=0
answer=$("$source/tests/lab/suite.sh" --tree aarch64 sid rustc cargo libstd-rust-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc libc6-dev) || status=$?
tree=${answer##*$'\n'}
[ $status = 0 ] || { echo "$tree" >&2; exit $status; }
home=${CARGO_HOME:-$HOME/.cargo}
(cd "$source" && cargo fetch --locked --target "$triple" --target "$(uname -m)-unknown-linux-gnu")
mkdir -p "$tree/source" "$tree/out" "$tree/cargo/registry"
# The mounts end with the process.
# shellcheck disable=SC2016 # expanded in the new namespace
exec unshare --mount --propagation private sh -ec '
  tree=$1 source=$2 out=$3 home=$4
  shift 4
  mount --bind "$source" "$tree/source"
  mount -o remount,bind,ro "$tree/source"
  mount --bind "$out" "$tree/out"
  mount --bind "$home/registry" "$tree/cargo/registry"
  mount --rbind /dev "$tree/dev"
  mount -t proc proc "$tree/proc"
  exec env -i PATH=/usr/bin HOME=/tmp CARGO_HOME=/cargo CARGO_TARGET_DIR=/out CARGO_NET_OFFLINE=true CARGO_TERM_COLOR=never "SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-}" \
    CC=gcc CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
    AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar /usr/bin/unshare --root "$tree" --wd /source cargo "$@"
' sh "$tree" "$source" "$out" "$home" "$@"
