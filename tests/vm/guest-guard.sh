#!/bin/sh
# guest-guard.sh PROGRAM   what a guest with BPF tokens and BPF LSM runs: the guard by the command line, and the tokens that bpfman-hook
# gives while it is in force.
set -eu

program=$1

expect() { # FILE WORDS
	grep -q "$2" "$1" || { echo "nothing says \"$2\":" >&2; cat "$1" >&2; exit 1; }
}
fails() { # COMMAND...: runs it, and expects that it fails; what it says is in /tmp/said
	! "$@" >/tmp/said 2>&1 || { echo "succeeded: $*" >&2; cat /tmp/said >&2; exit 1; }
}
scope() { # TYPE SCOPE
	"$program" token explain --scope >/tmp/scope
	expect /tmp/scope "^$1  *$2 "
}

it_is_put_in_force_and_ended() {
	fails "$program" guard status
	scope xdp host
	"$program" guard load
	"$program" guard load --bounded
	"$program" guard status >/tmp/said
	expect /tmp/said 'in force, and refuses programs without a bound'
	"$program" doctor >/tmp/said || true
	expect /tmp/said 'guard of tokens.*no unit puts it in force'
	scope xdp container
	scope cgroup_device container
	scope syscall host
	scope kprobe host
	"$program" guard unload >/dev/null
	scope xdp host
	fails "$program" guard status
}

container= # the process that stands for one
start() {  # a process with namespaces of its own
	unshare -U -m -n sleep 600 >/dev/null 2>&1 &
	container=$!
	while [ "$(readlink "/proc/$container/ns/user")" = "$(readlink /proc/self/ns/user)" ]; do usleep 20000; done
	echo '0 100000 65536' >"/proc/$container/uid_map"
	echo '0 100000 65536' >"/proc/$container/gid_map"
}
create() { # ARGUMENTS...
	"$program" token create --pid "$container" --delegate-cmds map_create:prog_load --delegate-maps array "$@"
}
stop() {
	kill "$container"
	wait "$container" || true
}

tokens_are_bound_to_the_user_namespace() {
	"$program" guard load
	start
	create --delegate-progs socket_filter:xdp:sched_cls --delegate-attachs cgroup_inet_ingress:xdp:tcx_ingress >/dev/null
	"$program" token explain --pid "$container" >/tmp/said
	expect /tmp/said 'binds its token to its user namespace only'
	# Inside, the token works for programs that stay there.
	nsenter -t "$container" -U -m -n -S 0 -G 0 "$program" token probe >/tmp/said || { cat /tmp/said >&2; exit 1; }
	for step in 'create a map' 'load a socket filter' 'load an xdp program' 'load a tcx program'; do
		expect /tmp/said "^ok *$step"
	done
	stop
	"$program" gc --quiet
	# Host scope needs a cgroup that the token is bound to.
	start
	fails create --delegate-progs socket_filter:kprobe --delegate-attachs cgroup_inet_ingress
	expect /tmp/said 'the guard grants host scope only to a container with a user namespace and a v2 cgroup of its own'
	stop
	"$program" guard unload >/dev/null
}

it_is_put_in_force_and_ended
tokens_are_bound_to_the_user_namespace
echo "the guard: put in force and ended; tokens work in their user namespaces"
