#!/bin/sh
# guest-gate.sh PROGRAM   what a guest with Linux 6.12 or newer and BPF LSM runs: the gate by the command line, and the ways around it.
set -eu

modprobe ext4
modprobe loop
mkdir -p /etc/bpfman-hook /tmp/ext4
gunzip -c verity.img.gz >/tmp/verity.img
mount -o loop /tmp/verity.img /tmp/ext4
# Sealed, as `install` does it where the file system can: the kernel need not read it at each of its starts.
cp "$1" /tmp/ext4/bpfman-hook
program=/tmp/ext4/bpfman-hook
"$program" gate seal "$program" >/dev/null
policy=/etc/bpfman-hook/policy.toml
pins=/run/bpfman-hook/fs/gate

expect() { # FILE WORDS
	grep -q -e "$2" "$1" || { echo "nothing says \"$2\":" >&2; cat "$1" >&2; exit 1; }
}
fails() { # COMMAND...: runs it, and expects that it fails; what it says is in /tmp/said
	! "$@" >/tmp/said 2>&1 || { echo "succeeded: $*" >&2; cat /tmp/said >&2; exit 1; }
}
says() { # EXPECTED COMMAND...: what a client says about its calls, in one line
	expected=$1
	shift
	found=$("$@" 2>&1 | tr '\n' ' ' | sed 's/ $//')
	[ "$found" = "$expected" ] || { echo "$* says \"$found\" instead of \"$expected\"" >&2; "$program" gate status >&2; exit 1; }
}
counted() { # NAME
	"$program" gate status >/tmp/status
	sed -n "s/^$1: //p" /tmp/status
}
digest() { sha256sum "$1" | cut -d' ' -f1; }
list() { # DIGEST...
	{
		echo '[gate]'
		echo 'executables = ['
		for one; do echo "  \"$one\","; done
		echo ']'
	} >$policy
}

cp gate-client /tmp/good
cp gate-client /tmp/bad
echo bad >>/tmp/bad
good=sha256:$(digest /tmp/good)
bad=sha256:$(digest /tmp/bad)

without_a_gate_in_the_policy() {
	fails "$program" gate status
	expect /tmp/said 'the gate is not in force'
	fails "$program" gate load
	expect /tmp/said 'the policy has no gate; write \[gate\] with executables'
	says 'load ok' /tmp/bad load
}

it_only_counts_first() {
	list "$good"
	"$program" gate load --warn
	says 'load ok btf ok load ok' /tmp/bad load btf load
	"$program" gate status >/tmp/status
	expect /tmp/status 'the gate is in force, and only counts'
	expect /tmp/status "  $bad  bad (3 calls)"
	says 'load ok' /tmp/good load
	! "$program" gate status | grep "$good" || { echo "a listed executable is reported" >&2; exit 1; }
}

a_trial_ends_by_itself() {
	"$program" gate try 5 >/tmp/said
	expect /tmp/said 'refuses for 5 seconds'
	says 'load EPERM' /tmp/bad load
	"$program" gate status >/tmp/status
	expect /tmp/status 'refuses for [1-5] more seconds'
	sleep 5
	says 'load ok' /tmp/bad load
	"$program" gate status >/tmp/status
	expect /tmp/status 'its trial has ended'
}

only_listed_executables_load() {
	"$program" gate load
	says 'load EPERM btf EPERM' /tmp/bad load btf
	says 'load ok btf ok' /tmp/good load btf
	# What runtimes and systemd load for containers and services.
	says 'device ok skb ok' /tmp/bad device skb
	# By its contents, not by its name.
	cp /tmp/good /tmp/renamed
	ln -s /tmp/good /tmp/link
	says 'load ok' /tmp/renamed load
	says 'load ok' /tmp/link load
	"$program" doctor >/tmp/said || true
	expect /tmp/said 'gate of executables.*in force'
	# The file is read once for each exec.
	before=$(counted hashed)
	says 'load ok btf ok load ok load ok' /tmp/good load btf load load
	[ "$(counted hashed)" = $((before + 1)) ] || { echo "the executable was read more than once" >&2; exit 1; }
}

an_exec_is_judged_again() {
	says 'load ok load EPERM' /tmp/good load exec /tmp/bad load
	says 'load EPERM load ok' /tmp/bad load exec /tmp/good load
}

a_dynamic_loader_does_not_count_as_what_it_runs() {
	list "$good" "sha256:$(digest /host/bpftool/bpftool)"
	"$program" gate load
	fails bpftool prog load /host/bpf/one_xdp.bpf.o /sys/fs/bpf/x
	"$program" gate status >/tmp/status
	expect /tmp/status "sha256:$(digest /host/bpftool/ld-linux-x86-64.so.2)  "
	list "$good"
	"$program" gate load
}

overlayfs_shows_the_contents() {
	modprobe overlay
	mkdir -p /tmp/lower /tmp/upper /tmp/work /tmp/merged
	cp /tmp/good /tmp/lower/good
	mount -t overlay -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work overlay /tmp/merged
	says 'load ok' /tmp/merged/good load
	echo more >>/tmp/merged/good
	says 'load EPERM' /tmp/merged/good load
	umount /tmp/merged
}

a_running_executable_cannot_become_another() {
	# Neither by writing listed contents into the file that it executes,
	says 'write ETXTBSY' /tmp/bad write /tmp/bad
	# nor by saying that it executes another file: without the gate the kernel would answer EBUSY and EINVAL here.
	says 'become EPERM describe EPERM load EPERM' /tmp/bad become /tmp/good describe load
	[ "$(counted protected)" -ge 2 ] || { echo "the attempts were not counted" >&2; exit 1; }
}

its_maps_are_protected() {
	for map in settings executables cgroups counts unlisted verdicts; do
		says 'open EPERM' /tmp/bad open $pins/*/$map
		says 'open ok' /tmp/good open $pins/*/$map
	done
	says 'maps 6' /tmp/bad maps
	says 'maps 0' /tmp/good maps
}

fs_verity_counts_too() {
	cp /tmp/good /tmp/ext4/sealed
	echo other >>/tmp/ext4/sealed
	"$program" gate seal /tmp/ext4/sealed >/tmp/said
	expect /tmp/said '^fs-verity:[0-9a-f]*  /tmp/ext4/sealed$'
	! echo more 2>/dev/null >>/tmp/ext4/sealed || { echo "a sealed file can be changed" >&2; exit 1; }
	sealed=$(cut -d' ' -f1 /tmp/said)
	"$program" gate seal /tmp/ext4/sealed | grep -q "^$sealed " || { echo "another digest" >&2; exit 1; }
	fails "$program" gate seal /tmp/bad
	expect /tmp/said 'has no fs-verity.*list the file as sha256:'
	says 'load EPERM' /tmp/ext4/sealed load
	list "$good" "$sealed"
	"$program" gate load
	before=$(counted hashed)
	says 'load ok' /tmp/ext4/sealed load
	[ "$(counted hashed)" = "$before" ] || { echo "a sealed file was read" >&2; exit 1; }
	# The same contents without fs-verity are other contents for this list.
	cp /tmp/ext4/sealed /tmp/unsealed
	says 'load EPERM' /tmp/unsealed load
}

its_owner_is_not_locked_out() {
	# Another version of the program is not listed, and puts the gate in force nevertheless; the old one stays listed.
	cp "$program" /tmp/newer
	echo newer >>/tmp/newer
	fails /tmp/newer gate status
	expect /tmp/said 'Operation not permitted'
	/tmp/newer gate load
	/tmp/newer gate status >/dev/null
	"$program" gate load
	says 'load EPERM' /tmp/bad load
	# Without any call of bpf(2).
	rm -r $pins
	n=0
	until [ "$(/tmp/bad load)" = 'load ok' ]; do
		n=$((n + 1))
		[ $n -lt 50 ] || { echo "the gate is still in force" >&2; exit 1; }
		usleep 100000
	done
	"$program" gate load
	says 'load EPERM' /tmp/bad load
	"$program" gate unload >/tmp/said
	expect /tmp/said 'the gate is no longer in force'
}

programs_have_to_be_signed() { # Linux 7.2
	mkdir -p /etc/bpfman-hook/program-keys
	sed -n '/BEGIN CERTIFICATE/,$p' signer.pem >/etc/bpfman-hook/program-keys/node.pem
	printf '[gate]\nkernel-signed = "required"\n' >$policy
	cp /host/bpf/one_xdp.bpf.o /tmp/plain.o
	"$program" image sign --key signer.pem --to /tmp/signed.o /tmp/plain.o
	"$program" gate load --warn
	says 'load ok sized ok' /tmp/bad load sized
	[ "$(counted 'unsigned counted')" = 2 ] || { cat /tmp/status >&2; exit 1; }
	"$program" gate load
	expect /run/bpfman-hook/program-keyring '^[0-9]*$'
	says 'load EPERM sized EPERM' /tmp/bad load sized
	says 'device ok skb ok btf ok' /tmp/bad device skb btf
	fails "$program" load file --path /tmp/plain.o --programs xdp:count
	"$program" load file --path /tmp/signed.o --programs xdp:count >/tmp/said
	"$program" unload "$("$program" list programs -q)" >/dev/null
	# What bpfman-hook brings along has no signature.
	"$program" gate load --warn
	"$program" gate load
	"$program" gate status >/tmp/status
	expect /tmp/status "have to be signed by the node's keyring $(cat /run/bpfman-hook/program-keyring)"
	"$program" gate unload >/dev/null
}

refused_without_checks_of_signatures() { # before
	printf '[gate]\nkernel-signed = "required"\n' >$policy
	mkdir -p /etc/bpfman-hook/program-keys
	cp signer.pem /etc/bpfman-hook/program-keys/node.pem
	fails "$program" gate load
	expect /tmp/said "let only signed programs in: this kernel has no checks of programs' signatures"
	fails "$program" gate status
}

without_a_gate_in_the_policy
it_only_counts_first
a_trial_ends_by_itself
only_listed_executables_load
an_exec_is_judged_again
a_dynamic_loader_does_not_count_as_what_it_runs
overlayfs_shows_the_contents
a_running_executable_cannot_become_another
its_maps_are_protected
fs_verity_counts_too
its_owner_is_not_locked_out
case $(uname -r) in
6.12.*) refused_without_checks_of_signatures ;;
*) programs_have_to_be_signed ;;
esac
umount /tmp/ext4
rm -r /etc/bpfman-hook
echo "the gate: only listed executables load, and its owner gets in"
