#!/bin/bash
# suite.sh BINARY [KERNEL...]   runs the privileged tests of attach types under other kernels; BINARY is the static test binary of
# tests/privileged. Exit status 77, with the reason, where kernels cannot be had on this machine at all; any other is a failure.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
root=$(cd "$here/../.." && pwd)
[ $# -ge 1 ] || { echo "usage: $0 BINARY [KERNEL...]" >&2; exit 2; }
binary=$(readlink -e "$1")
shift
[ $# -gt 0 ] || set -- 6.1 6.12 7.2

if ! reason=$("$here/vm.sh" check); then
	echo "SKIPPED: the tests of other kernels did not run: $reason" >&2
	exit 77
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/bpf"
cp "$root"/tests/bpf/*.bpf.o "$stage/bpf/"
cp "$here/guest-suite.sh" "$stage/"
# Without its debug information, which a guest would read through a slow file system.
objcopy --strip-debug "$binary" "$stage/privileged"

if ! "$here/vm.sh" fetch "$@"; then
	echo "SKIPPED: the tests of other kernels did not run: they could not be fetched" >&2
	exit 77
fi
failed=''
for kernel; do
	"$here/vm.sh" run "$kernel" -s "$stage" -- sh guest-suite.sh "$root" "$kernel" || failed="$failed $kernel"
done
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
echo "passed under: $*"
