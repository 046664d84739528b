#!/bin/bash
# containers.sh E2E CONTAINERD [KERNEL...]   runs the tests of the guard and of policing with containers, under kernels that call LSM
# programs: with runc, crun, podman and bpftool of this machine and with containerd (guest-host.sh). E2E and CONTAINERD are test
# binaries. CONTAINERS_TESTS selects tests. Exit status 77, with the reason, where kernels cannot be had on this machine at all; any
# other is a failure.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
[ $# -ge 2 ] || { echo "usage: $0 E2E CONTAINERD [KERNEL...]" >&2; exit 2; }
e2e=$(readlink -e "$1")
containerd=$(readlink -e "$2")
program=$(readlink -e "${e2e%/*}/../bpfman-hook")
shift 2
[ $# -gt 0 ] || set -- 7.2

if ! reason=$("$here/vm.sh" check) || ! "$here/vm.sh" fetch "$@"; then
	echo "SKIPPED: the guard and policing were not tested with containers: ${reason:-kernels could not be fetched}" >&2
	exit 77
fi
"$here/../lab/containerd/packages.sh" >/dev/null || { containerd=''; echo "SKIPPED: containerd in a guest: it cannot be fetched" >&2; }
# The guest would take minutes to compile it, and read debug information through a slow file system.
stage=$(mktemp -d /var/tmp/bpfman-hook-containers.XXXXXX)
trap 'rm -rf "$stage"' EXIT
cc -O2 -static -pthread -o "$stage/bpf_client" "$here/../e2e/bpf_client.c"
for binary in "$program" "$e2e" $containerd; do objcopy --strip-debug "$binary" "$stage/${binary##*/}"; done

# In the guest: the program is where its tests look for it.
cat >"$stage/run" <<'RUN'
set -eu
stage=$1
cp "$stage/bpfman-hook" "$2"
shift 2
for binary in "$stage"/e2e-* "$stage"/containerd-*; do
	[ -e "$binary" ] || continue
	cp "$binary" /tmp/tests
	status=0
	/tmp/tests --test-threads=1 --nocapture "$@" >/tmp/said 2>&1 || status=$?
	cat /tmp/said
	[ "$status" = 0 ] || exit "$status"
	# A kernel that refused what it is known to have would pass tests that accept a refusal.
	if grep 'as it should be' /tmp/said; then
		echo "this kernel polices and has the guard, and something was refused" >&2
		exit 1
	fi
	grep -q '^test result: ok. [1-9]' /tmp/said || { echo "no test ran" >&2; exit 1; }
done
RUN
failed=''
for kernel; do
	# shellcheck disable=SC2086 # names of tests
	"$here/vm.sh" run "$kernel" -s / -m 2048 -t "${CONTAINERS_LIMIT:-400}" -- sh "/host$here/guest-host.sh" -- \
		env TEST_PROGRAMS="$stage" sh "$stage/run" "$stage" "$program" ${CONTAINERS_TESTS:-guarded:: policing::} || failed="$failed $kernel"
done
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
