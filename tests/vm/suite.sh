#!/bin/bash
# suite.sh PRIVILEGED SERVICE PROGRAM [KERNEL...]   runs the tests of attach types under other kernels. PRIVILEGED and SERVICE are the
# static test binaries of tests/privileged and tests/service, PROGRAM is what the second one tests. Exit status 77, with the reason,
# where kernels cannot be had on this machine at all; any other is a failure.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
root=$(cd "$here/../.." && pwd)
[ $# -ge 3 ] || { echo "usage: $0 PRIVILEGED SERVICE PROGRAM [KERNEL...]" >&2; exit 2; }
privileged=$(readlink -e "$1")
service=$(readlink -e "$2")
program=$(readlink -e "$3")
shift 3
[ $# -gt 0 ] || set -- 6.1 6.12 7.2

if ! reason=$("$here/vm.sh" check); then
	echo "SKIPPED: the tests of other kernels did not run: $reason" >&2
	exit 77
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/bpf" "$stage/bpftool"
cp "$root"/tests/bpf/*.bpf.o "$stage/bpf/"
cp "$here/guest-suite.sh" "$stage/"
# Without their debug information, which a guest would read through a slow file system.
objcopy --strip-debug "$privileged" "$stage/privileged"
objcopy --strip-debug "$service" "$stage/service"
objcopy --strip-debug "$program" "$stage/bpfman-hook"
# The tests look for residue with bpftool, which needs this machine's libraries.
bpftool=$(PATH=$PATH:/usr/sbin command -v bpftool)
cp -L "$bpftool" "$stage/bpftool/"
ldd "$bpftool" | grep -o '/[^ ]*' | xargs -I '{}' cp -L '{}' "$stage/bpftool/"

if ! "$here/vm.sh" fetch "$@"; then
	echo "SKIPPED: the tests of other kernels did not run: they could not be fetched" >&2
	exit 77
fi
failed=''
for kernel; do
	"$here/vm.sh" run "$kernel" -s "$stage" -- sh guest-suite.sh "$root" "$kernel" "$program" || failed="$failed $kernel"
done
VM_LSM=lockdown,capability "$here/vm.sh" run "$kernel" -s "$stage" -- sh guest-suite.sh "$root" without-lsm "$program" ||
	failed="$failed $kernel without BPF LSM"
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
echo "passed under: $*"
