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
mkdir "$stage/bpf" "$stage/bpftool" "$stage/docs"
cp "$root"/tests/bpf/*.bpf.o "$stage/bpf/"
cp "$root/docs/tokens.md" "$stage/docs/"
cp "$here/guest-suite.sh" "$here/guest-guard.sh" "$here/guest-gate.sh" "$root/tests/data/programs/signer.pem" "$stage/"
# What the gate judges, and a file system with fs-verity for it.
cc -O2 -static -Wall -Wextra -Werror -o "$stage/gate-client" "$here/gate_client.c"
truncate -s 80M "$stage/verity.img"
PATH=$PATH:/usr/sbin mkfs.ext4 -q -F -b 4096 -O verity,^has_journal "$stage/verity.img"
gzip -1 "$stage/verity.img"
# Without their debug information, which a guest would read through a slow file system.
objcopy --strip-debug "$privileged" "$stage/privileged"
objcopy --strip-debug "$service" "$stage/service"
objcopy --strip-debug "$program" "$stage/bpfman-hook"
# The tests look for residue with bpftool, which needs this machine's libraries.
bpftool=$(PATH=$PATH:/usr/sbin command -v bpftool)
cp -L "$bpftool" "$stage/bpftool/"
ldd "$bpftool" | grep -o '/[^ ]*' | xargs -I '{}' cp -L '{}' "$stage/bpftool/"
# AppArmor's parser, our profile, and the default one of engines, which differs from ours in one rule.
parser=$(PATH=$PATH:/usr/sbin command -v apparmor_parser)
profile=$root/packaging/apparmor/bpfman-hook-container
mkdir "$stage/apparmor"
cp -L "$parser" "$profile" "$stage/apparmor/"
ldd "$parser" | grep -o '/[^ ]*' | xargs -I '{}' cp -L '{}' "$stage/apparmor/"
sed -e 's/bpfman-hook-container/containers-default/' -e '/deny \/sys\/fs\/bp*\[/d' -e 's/\[^bc\]/[^c]/' "$profile" >"$stage/apparmor/containers-default"
cp "$here/guest-apparmor.sh" "$stage/"

if ! "$here/vm.sh" fetch "$@"; then
	echo "SKIPPED: the tests of other kernels did not run: they could not be fetched" >&2
	exit 77
fi
failed=''
for kernel; do
	"$here/vm.sh" run "$kernel" -s "$stage" -t 480 -- sh guest-suite.sh "$root" "$kernel" "$program" || failed="$failed $kernel"
done
# One more boot, for what the security modules decide: AppArmor is among them, and BPF is not.
# shellcheck disable=SC2016 # the guest's shell expands it
VM_LSM=lockdown,capability,apparmor "$here/vm.sh" run "$kernel" -s "$stage" -- \
	sh -c 'sh guest-suite.sh "$1" without-lsm "$2" && sh guest-apparmor.sh' sh "$root" "$program" ||
	failed="$failed $kernel with AppArmor and without BPF LSM"
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
echo "passed under: $*"
