#!/bin/sh
# guest-suite.sh ROOT KERNEL   what a guest runs: the tests of attach types, and then the proof that each did what it is here for.
# A kernel that refused what it is known to have would pass tests that accept a refusal.
set -eu

root=$1
kernel=$2

# Tests look for objects where they were built.
mkdir -p "$root/tests/bpf"
mount --bind /host/bpf "$root/tests/bpf"

status=0
./privileged --test-threads=1 --nocapture probes:: tcx_programs classifiers tracing_programs an_xdp_and >/tmp/said 2>&1 || status=$?
cat /tmp/said
[ "$status" = 0 ] || exit "$status"

ran=$(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1/p' /tmp/said)
[ "$ran" -ge 11 ] || { echo "only $ran tests ran" >&2; exit 1; }
if grep 'refused as it should be' /tmp/said; then
	echo "Linux $kernel has all of this, and something was refused" >&2
	exit 1
fi
case $kernel in
6.1) grep -q 'skipped: ' /tmp/said || { echo "Linux 6.1 has no tcx, and nothing said so" >&2; exit 1; } ;;
*) ! grep 'skipped: ' /tmp/said || { echo "Linux $kernel has tcx" >&2; exit 1; } ;;
esac

# Residue: every test removed what it made.
left=$(find /sys/fs/bpf /run -name 'owner_*' 2>/dev/null)
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
