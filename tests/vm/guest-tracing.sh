#!/bin/sh
# guest-tracing.sh KERNEL some|all   what a guest runs: programs that trace, each in a container of its own without any capability,
# whose bpf(2) and perf_event_open(2) are made by the proxy. /out/results.tsv says what works: tests/vm/tracing.sh. With `some` every
# one has to.
set -eu

kernel=$1
which=$2
results=/out/results.tsv
sockets=/run/bpfman-hook/proxy

mkdir -p /lib64 /lib/x86_64-linux-gnu /usr/local/bin /etc/bpfman-hook /run/runc /run/bundle $sockets
for file in runc/*; do
	case $file in
	*/runc) cp "$file" /usr/sbin/ ;;
	*/ld-linux*) cp "$file" /lib64/ ;;
	*) cp "$file" /lib/x86_64-linux-gnu/ ;;
	esac
done
cp bpfman-hook /usr/local/bin/
PATH=$PATH:/usr/local/bin
printf '[[container]]\nhost-scope = true\nproxy = ["tracing"]\n[limits]\nmap-memory = "256MiB"\n' >/etc/bpfman-hook/policy.toml

# One container with the script /run/script; what it says goes to /tmp/said.
contained() {
	rm -f $sockets/* /run/bpfman-hook/log
	(printf go | bpfman-hook proxy own-socket $sockets/guest.sock >/tmp/socket) &
	for _ in $(seq 500); do ! grep -q ready /tmp/socket 2>/dev/null || break; usleep 20000; done
	profile=$(bpfman-hook proxy profile --perf-events --form oci | sed "s|/run/bpfman-hook/proxy.sock|$sockets/guest.sock|" | tr -d '\n')
	awk -v profile="$profile" '{ at = index($0, "\"SECCOMP\""); if (at) $0 = substr($0, 1, at - 1) profile substr($0, at + 9); print }' \
		config.json >/run/bundle/config.json
	timeout -k 5 120 runc --root /run/runc run -b /run/bundle traced </dev/null >/tmp/said 2>&1 || true
	runc --root /run/runc delete -f traced 2>/dev/null || true
	rm -f /tmp/socket
}

# client NAME PACKAGE WHAT EXPECTED SCRIPT: EXPECTED is a line of what the program says if it works.
client() {
	name=$1 version=$(sed -n "s/^$2 //p" versions) what=$3 expected=$4
	# Something to trace, for as long as the container runs.
	printf 'while :; do cat /script >/dev/null; done &\n%s\n' "$5" >/run/script
	contained
	if grep -qE "$expected" /tmp/said; then
		verdict=works
	else
		verdict=$(grep -vE '^(Attaching|WARNING|$)' /tmp/said | head -n 1 | tr '\t' ' ')
		verdict="does not work: ${verdict:-it says nothing}"
		[ "$which" = all ] || failed=1
		{ echo "--- $name, $what:"; head -c 2000 /tmp/said; cat /run/bpfman-hook/log 2>/dev/null || true; } >&2
	fi
	printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$version" "$what" host "$kernel" "$verdict" >>$results
}

failed=''
bpftrace() { client bpftrace bpftrace "$1" "$2" "bpftrace -e '$3'"; }
tool() { client "bcc: $1" libbpf-tools "$2" "$3" "timeout -s INT ${5:-20} $1-libbpf $4; echo status \$?"; }

bpftrace kprobe '^@: [1-9]' 'kprobe:vfs_read { @ = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
bpftrace tracepoint '^@: [1-9]' 'tracepoint:syscalls:sys_enter_openat { @ = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
bpftrace 'uprobe, BEGIN, END' '^ended [1-9]' \
	'BEGIN { @n = 0; @seen = 0; } uprobe:/usr/lib/x86_64-linux-gnu/libc.so.6:malloc { @n++; @seen = 1; } interval:s:1 { if (@seen) { exit(); } } END { printf("ended %d\n", @n); }'
tool opensnoop tracepoint 'cat .*/script' '-d 2'
tool vfsstat 'fentry or kprobe' '^[0-9:]+ .*[1-9]' '1 1'
if [ "$which" = all ]; then
	bpftrace kretprobe '^@: [1-9]' 'kretprobe:vfs_read { @ = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace 'kprobe of many functions' '^@\[.*vfs_read.*\]: [1-9]' 'kprobe:vfs_rea* { @[probe] = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace 'uprobe of many functions' '^@\[.*malloc.*\]: [1-9]' 'uprobe:/usr/lib/x86_64-linux-gnu/libc.so.6:mallo* { @[probe] = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace uretprobe '^@: [1-9]' 'uretprobe:/usr/lib/x86_64-linux-gnu/libc.so.6:malloc { @ = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace fentry '^@: [1-9]' 'fentry:vmlinux:vfs_read { @ = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace rawtracepoint '^@: [1-9]' 'rawtracepoint:sys_enter { @ = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace 'profile (perf_event)' '^@\[.*\]: [1-9]' 'profile:hz:99 { @[comm] = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace 'software (perf_event)' '^@: [1-9]' 'software:context-switches:10 { @ = count(); @seen = 1; } interval:s:1 { if (@seen) { exit(); } }'
	bpftrace 'iterator' '^bpftrace' 'iter:task { printf("%s\n", ctx->task->comm); }'
	# The pid namespace is that of the container.
	! grep -q '^kthreadd' /tmp/said || { echo "the iterator shows tasks of the host" >&2; failed=1; }
	client bpftrace bpftrace 'execsnoop.bt: tracepoint, printf' 'cat /script' "timeout -s INT 40 execsnoop.bt"
	tool execsnoop tracepoint 'cat .*/script' ''
	tool syscount tracepoint '^read +[1-9]' '-d 2'
	tool funclatency 'fentry or kprobe' 'nsec +: count' '-d 2 vfs_read'
	tool runqlat 'tp_btf' 'usecs +: count' '1 1'
	tool profile 'perf_event, stacks' '^ +- ' 2 60
	tool gethostlatency 'uprobe' '^TIME' ''
fi
exit "${failed:-0}"
