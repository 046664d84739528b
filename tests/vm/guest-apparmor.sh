#!/bin/sh
# guest-apparmor.sh   what a guest with AppArmor runs: a token under the default profile of container engines, where a pin below
# /sys/fs/bpf is refused, and under ours, where it is not. apparmor/ beside this file has the parser and both profiles.
set -eu

case $(uname -r) in 6.1.*) echo "AppArmor: Linux 6.1 has no tokens"; exit 0 ;; esac

program=/usr/local/bin/bpfman-hook
mkdir -p "${program%/*}" /run/bpf
cp /host/bpfman-hook "$program"

for profile in containers-default bpfman-hook-container; do
	apparmor/ld-linux-x86-64.so.2 --library-path apparmor apparmor/apparmor_parser -K -r "apparmor/$profile" 2>/tmp/parser ||
		{ cat /tmp/parser >&2; exit 1; }
done

unshare -U -m -n sleep 600 &
container=$!
while [ "$(readlink /proc/$container/ns/user)" = "$(readlink /proc/self/ns/user)" ]; do usleep 20000; done
echo '0 100000 65536' >/proc/$container/uid_map
echo '0 100000 65536' >/proc/$container/gid_map
for path in /sys/fs/bpf /run/bpf; do
	"$program" token create --pid $container --path $path --delegate-cmds map_create:prog_load --delegate-maps array \
		--delegate-progs socket_filter:xdp:sched_cls --delegate-attachs cgroup_inet_ingress:xdp:tcx_ingress >/dev/null
done

confined() { # PROFILE COMMAND...: in the container, under the profile from the exec on
	profile=$1
	shift
	# shellcheck disable=SC2016 # the inner shell's
	${entering-} nsenter -t $container -U -m -n -S 0 -G 0 \
		sh -c 'printf "exec %s" "$1" >/proc/self/attr/exec; shift; exec "$@"' sh "$profile" "$@"
}
expect() { # FILE WORDS
	grep -q "$2" "$1" || { echo "nothing says \"$2\":" >&2; cat "$1" >&2; exit 1; }
}

tokens_work_and_pins_depend_on_the_profile() {
	for case in containers-default:/sys/fs/bpf:refused containers-default:/run/bpf:ok bpfman-hook-container:/sys/fs/bpf:ok; do
		profile=${case%%:*}
		path=${case#*:}
		pin=${path#*:}
		path=${path%%:*}
		# A refused pin is no failure: the token works.
		confined "$profile" "$program" token probe "$path" >/tmp/probe || { cat /tmp/probe >&2; exit 1; }
		for step in 'create a map' 'load a socket filter' 'load an xdp program' 'load a tcx program'; do
			expect /tmp/probe "^ok *$step"
		done
		case $pin in
		ok) expect /tmp/probe '^ok *pin it' ;;
		refused) expect /tmp/probe '^failed *pin it.*Permission denied.*AppArmor profile "containers-default".*bpffs-path=/run/bpf' ;;
		esac
	done
}

the_kernel_is_asked_what_a_profile_allows() {
	for case in containers-default:1 bpfman-hook-container:0; do
		(entering='exec'; confined "${case%:*}" sleep 600) &
		workload=$!
		while ! grep -q "^${case%:*} " /proc/$workload/attr/current; do usleep 20000; done
		"$program" token explain --pid $workload >/tmp/explain
		said=$(grep -c 'which refuses to pin in /sys/fs/bpf' /tmp/explain || true)
		[ "$said" = "${case#*:}" ] || { echo "of ${case%:*}, explain says it $said times:" >&2; cat /tmp/explain >&2; exit 1; }
		kill $workload
	done
	"$program" doctor >/tmp/doctor || true
	expect /tmp/doctor 'apparmor .*on: under the default profiles'
}

tokens_work_and_pins_depend_on_the_profile
the_kernel_is_asked_what_a_profile_allows
kill $container
echo "AppArmor: tokens work under both profiles, pins below /sys/fs/bpf under ours"
