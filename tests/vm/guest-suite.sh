#!/bin/sh
# guest-suite.sh ROOT KERNEL|without-lsm PROGRAM   what a guest runs: the tests of attach types, by the library, by the command line and
# by the service, and then the proof that each did what it is here for. A kernel that refused what it is known to have would pass tests
# that accept a refusal. ROOT and PROGRAM are where the tests look for objects and for our program.
set -eu

root=$1
kernel=$2
program=$3

# Tests look for objects where they were built.
mkdir -p "$root/tests/bpf"
mount --bind /host/bpf "$root/tests/bpf"
# docs/tokens.md says what a token can be used for on these kernels.
mkdir -p "$root/docs"
mount --bind /host/docs "$root/docs"

# A kernel without BPF among its security modules: a program would load, attach and never be called, so that it has to be refused.
if [ "$kernel" = without-lsm ]; then
	./privileged --test-threads=1 --nocapture an_lsm_program_refuses >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
	grep 'refused as it should be: .*boot with lsm=' /tmp/said || { echo "nothing was refused" >&2; exit 1; }
	! /host/bpfman-hook guard load 2>/tmp/said || { echo "the guard is in force, and nobody calls it" >&2; exit 1; }
	grep 'put the guard in force: judge what is loaded with a token: .*boot with lsm=' /tmp/said || { cat /tmp/said; exit 1; }
	mkdir -p /etc/bpfman-hook
	printf '[gate]\nexecutables = []\n' >/etc/bpfman-hook/policy.toml
	! /host/bpfman-hook gate load 2>/tmp/said || { echo "the gate is in force, and nobody calls it" >&2; exit 1; }
	grep 'put the gate in force: judge which executables load programs: .*boot with lsm=' /tmp/said || { cat /tmp/said; exit 1; }
	exit 0
fi

mkdir -p "${program%/*}" /var/lib /usr/local/bin
cp /host/bpfman-hook "$program"
printf '#!/bin/sh\nexec /host/bpftool/ld-linux-x86-64.so.2 --library-path /host/bpftool /host/bpftool/bpftool "$@"\n' >/usr/bin/bpftool
chmod 755 /usr/bin/bpftool

status=0
./privileged --test-threads=1 --nocapture built_in:: gate:: guard:: police:: probes:: signatures:: token_matrix:: token_reach:: tcx_programs classifiers tracing_programs an_xdp_and >/tmp/said 2>&1 || status=$?
cat /tmp/said
[ "$status" = 0 ] || exit "$status"
ran=$(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1/p' /tmp/said)
[ "$ran" -ge 23 ] || { echo "only $ran tests ran" >&2; exit 1; }
if grep 'refused as it should be' /tmp/said; then
	echo "Linux $kernel has all of this, and something was refused" >&2
	exit 1
fi
case $kernel in
6.1)
	grep -q 'skipped: ' /tmp/said || { echo "Linux 6.1 has no tcx, and nothing said so" >&2; exit 1; }
	grep -q 'skipped: no BPF tokens' /tmp/said || { echo "Linux 6.1 has no tokens, and nothing said so" >&2; exit 1; }
	;;
*) ! grep 'skipped: ' /tmp/said || { echo "Linux $kernel has tcx and tokens" >&2; exit 1; } ;;
esac

# The guard, by the command line.
if [ "$kernel" = 6.1 ]; then
	! "$program" guard load 2>/tmp/said || { echo "Linux 6.1 has no tokens to guard" >&2; exit 1; }
	grep 'this kernel has no BPF tokens, which came with Linux 6.9' /tmp/said || { cat /tmp/said; exit 1; }
else
	sh guest-guard.sh "$program"
fi

# The gate.
if [ "$kernel" = 6.1 ]; then
	mkdir -p /etc/bpfman-hook
	printf '[gate]\nexecutables = []\n' >/etc/bpfman-hook/policy.toml
	! "$program" gate load 2>/tmp/said || { echo "Linux 6.1 does not tell executables" >&2; exit 1; }
	grep 'put the gate in force: this kernel has no bpf_get_task_exe_file, which came with Linux 6.12' /tmp/said || { cat /tmp/said; exit 1; }
	rm -r /etc/bpfman-hook
else
	sh guest-gate.sh "$program"
fi

./service --test-threads=1 --nocapture places::every >/tmp/said 2>&1 || status=$?
cat /tmp/said
[ "$status" = 0 ] || exit "$status"
grep -q '^test result: ok. 2 passed' /tmp/said || { echo "the tests of manual loads did not both run" >&2; exit 1; }
# tcx, once by each way.
expected=0
[ "$kernel" != 6.1 ] || expected=2
refused=$(grep -c 'refused as it should be' /tmp/said || true)
[ "$refused" = "$expected" ] || { echo "Linux $kernel refused $refused manually loaded programs, expected $expected" >&2; exit 1; }

# Residue: every test removed what it made.
left=$(find /sys/fs/bpf /run -name 'owner_*' 2>/dev/null)
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
