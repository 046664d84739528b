#!/bin/sh
# systemd-check.sh: a service of the booted root, with a systemd that is pid 1. The proxy of bpf(2): the socket starts a process for each
# container and for each exec, with the limits of its unit. The guard: what a boot starts puts it in force.
set -eu
unit='bpfman-hook-proxy@*.service'

fail() {
	echo "FAILED: $*"
	systemctl list-units --all --no-pager --plain 'bpfman-hook*' || true
	cat /run/bpfman-hook/log 2>/dev/null || true
	exit 1
}
is() { # WHAT FOUND EXPECTED
	[ "$2" = "$3" ] || fail "$1 is '$2' instead of '$3'"
	echo "$1: $2"
}
running() { systemctl list-units --no-legend --plain --state=running "$unit" | wc -l; }
eventually() { # WHAT COMMAND EXPECTED
	n=0
	while [ "$(eval "$2")" != "$3" ]; do
		n=$((n + 1))
		[ $n -lt 100 ] || fail "$1: '$(eval "$2")' instead of '$3'"
		usleep 100000
	done
	echo "$1: $3"
}
hear() { # WORD: the line of the workload's output that begins with it
	n=0
	until grep -q "^$1" /run/web.out; do
		n=$((n + 1))
		[ $n -lt 200 ] || fail "the workload did not say $1: $(cat /run/web.out)"
		usleep 100000
	done
	sed -n "s/^$1 *//p" /run/web.out | tail -n 1
}

said_by() { # COMMAND...: what it says, whatever its status
	"$@" 2>&1 || true
}
finding() { # the line of doctor about the guard
	said_by bpfman-hook doctor | grep 'guard of tokens'
}

systemctl --version | head -n 1
# Everything below happens with the gate in force, since before this service started.
is "the gate's unit" "$(systemctl is-active bpfman-hook-gate.service)" active
bpfman-hook gate status | head -n 1 | grep '^the gate is in force, and refuses$' || fail "$(bpfman-hook gate status)"
systemctl start devices.service || fail "a service with a list of devices"
mkdir -p /var/lib/kubelet
bpfman-hook install --proxy --no-docs --no-timer
bpfman-hook install --proxy --no-docs --no-timer --check || fail "install --check"
is "the socket" "$(systemctl is-active bpfman-hook-proxy.socket)" active
is "its mode" "$(stat -c %a /run/bpfman-hook/proxy.sock)" 600
bpfman-hook doctor >/run/doctor.out || true
grep '^ok *proxy' /run/doctor.out
[ "$(grep -c '^ok *proxy: \(kernel\|runc\|unit\|program\|socket\)' /run/doctor.out)" = 6 ] || fail "$(cat /run/doctor.out)"

mkfifo /run/web.in
runc run --bundle /bundle web </run/web.in >/run/web.out 2>&1 &
exec 4>/run/web.in
is "a map of the workload" "$(hear map)" "0 0"
is "an XDP link of the workload" "$(hear xdp)" "0 0"
hear waiting >/dev/null
is "processes of the proxy" "$(running)" 1
instance=$(systemctl list-units --no-legend --plain --state=running "$unit" | cut -d' ' -f1)
pid=$(systemctl show -P MainPID "$instance")
cgroup=/sys/fs/cgroup$(systemctl show -P ControlGroup "$instance")
is "its cgroup" "$(cat "$cgroup/cgroup.procs")" "$pid"
is "its limit of memory" "$(cat "$cgroup/memory.max")" 1073741824
is "its limit of tasks" "$(cat "$cgroup/pids.max")" 16
is "its weight of CPU time" "$(cat "$cgroup/cpu.weight")" 20
is "its new privileges" "$(sed -n 's/^NoNewPrivs:[[:space:]]*//p' "/proc/$pid/status")" 1
# CAP_DAC_OVERRIDE, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF.
is "its capabilities" "$(sed -n 's/^CapBnd:[[:space:]]*//p' "/proc/$pid/status")" 000000c000281002
runc exec web /client map 2>/dev/null | grep -q '^map 0 0' || fail "an exec"
eventually "processes after an exec" running 1
is "objects of the workload in its record" "$(bpfman-hook list links -q | wc -l)" 1

systemctl kill --signal=KILL "$instance"
eventually "processes after a kill" running 0
bpfman-hook list containers | grep 'gone: bpf(2) calls get ENOSYS' || fail "$(bpfman-hook list containers)"
is "events about the kill" "$(bpfman-hook events -F type=lost | wc -l)" 1
echo go >&4
is "a call of the workload after it" "$(hear prog)" "-1 38"
exec 4>&-
wait
runc delete --force web 2>/dev/null || true

# What was lost does not concern the next container.
runc run --bundle /bundle next </dev/null >/run/web.out 2>&1 || true
is "a map of the next container" "$(hear map)" "0 0"
eventually "processes at the end" running 0
is "units that are left" "$(systemctl list-units --all --no-legend --plain "$unit" | wc -l)" 0
bpfman-hook gate status | grep '^allowed: ' || fail "the gate saw nothing: $(bpfman-hook gate status)"
bpfman-hook gate unload
bpfman-hook uninstall --proxy >/dev/null
is "the socket after uninstall" "$(systemctl is-active bpfman-hook-proxy.socket || true)" inactive

bpfman-hook install --guard --guard-bounded --no-docs --no-timer
bpfman-hook install --guard --guard-bounded --no-docs --no-timer --check || fail "install --check of the guard"
is "the guard's unit" "$(systemctl is-active bpfman-hook-guard.service)" active
is "the guard's unit at boot" "$(systemctl is-enabled bpfman-hook-guard.service)" enabled
# Containers keep their tokens when the unit stops, so that the guard stays.
systemctl stop bpfman-hook-guard.service
said_by bpfman-hook guard status | grep '^the guard is in force' || fail "the guard ended with its unit"
# As at a boot: nothing is mounted, and the target starts what is enabled.
systemctl stop 'run-bpfman\x2dhook-fs.mount'
is "the guard without its pins" "$(said_by bpfman-hook guard status)" "the guard is not in force"
systemctl start multi-user.target
is "the guard's unit after that" "$(systemctl is-active bpfman-hook-guard.service)" active
said_by bpfman-hook guard status >/run/guard.out
grep '^the guard is in force, and refuses programs without a bound$' /run/guard.out || fail "$(cat /run/guard.out)"
# What the proof has tried.
for why in 'a kfunc' "an argument's tag" 'CAP_PERFMON or CAP_SYS_ADMIN'; do
	grep "^refused for $why: [1-9]" /run/guard.out || fail "$(cat /run/guard.out)"
done
finding | grep '^ok .*in force; [1-9][0-9]* refusals since it was loaded (.bpfman-hook guard status.)$' || fail "$(finding)"
bpfman-hook token explain --scope | grep '^xdp *container ' || fail "$(bpfman-hook token explain --scope)"
bpfman-hook uninstall --guard
is "the guard's unit after uninstall" "$(systemctl is-active bpfman-hook-guard.service || true)" inactive
is "the guard after uninstall" "$(said_by bpfman-hook guard status)" "the guard is not in force"
finding | grep '^absent .*not installed$' || fail "$(finding)"
is "files of its unit" "$(find /etc /usr/local -name 'bpfman-hook-guard*' | wc -l)" 0
echo "all is as it should be"
