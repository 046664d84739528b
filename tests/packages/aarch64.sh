#!/bin/bash
# aarch64.sh BINARY NATIVE   runs the program for aarch64 with qemu-user, as far as it makes no call of bpf(2), and compares what it says
# and writes with what NATIVE, the same version for this machine, does.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
source=$(readlink -f "$(dirname "$(readlink -f "$0")")/../..")
binary=$(readlink -e "$1") native=$(readlink -e "$2")
"$source/tests/setup.sh" file >&2
# Debian 12's qemu has no openat2(2).
status=0
answer=$("$source/tests/lab/suite.sh" trixie qemu-user) || status=$?
[ $status = 0 ] || { echo "${answer##*$'\n'}" >&2; exit $status; }
emulated=${answer##*$'\n'}/qemu-user/usr/bin/qemu-aarch64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
fail() { echo "FAILED: $*" >&2; exit 1; }
file "$binary" | grep -q 'ARM aarch64.*statically linked' || fail "$(file "$binary")"

# both NAME ARGUMENT...: the same output and the same exit status.
both() {
  local name=$1 status
  shift
  for each in native aarch64; do
    status=0
    case $each in native) "$native" "$@" ;; *) "$emulated" "$binary" "$@" ;; esac >"$work/$each" 2>&1 </dev/null || status=$?
    echo "exit status $status" >>"$work/$each"
  done
  diff "$work/native" "$work/aarch64" || fail "$name differs"
  echo "$name: $(tail -n 1 "$work/native")"
  passed=$((passed + 1))
}
mkdir -p "$work/root/etc/bpfman-hook/keys" "$work/bad"
cp "$source/tests/data/signatures/keys/cosign-v3.pub" "$work/root/etc/bpfman-hook/keys/"
echo '[[image]' >"$work/bad/policy.toml"
both version version
both help --help
both 'a policy' --root "$work/root" policy check
both 'a bad policy' policy check "$work/bad/policy.toml"
both 'a request' --root "$work/root" policy explain -a image=ghcr.io/acme/x:v1 -a 'programs=xdp:count iface=eth0; cgroup_skb:out'
both 'a wrong request' --root "$work/root" policy explain -a image=ghcr.io/acme/x:v1 -a 'programs=xpd:count'
both 'an image' image build "oci:$work/image:v1" linux/amd64="$source/tests/bpf/demo.bpf.o" linux/arm64="$source/tests/bpf/demo.bpf.o"
both 'its signatures' image verify --key "$work/root/etc/bpfman-hook/keys/cosign-v3.pub" "oci:$work/image:v1"
# Programs for this machine of an index: the objects are the same.
both 'its contents' image inspect "oci:$work/image:v1"
both 'a file that is no object' image build "oci:$work/none:v1" /etc/passwd
"$native" install --podman --crio --service --proxy --metrics --nri --prefix /usr --destdir "$work/native-tree" >/dev/null
"$emulated" "$binary" install --podman --crio --service --proxy --metrics --nri --prefix /usr --destdir "$work/aarch64-tree" >/dev/null
rm "$work/native-tree/usr/bin/bpfman-hook" "$work/aarch64-tree/usr/bin/bpfman-hook"
diff -r "$work/native-tree" "$work/aarch64-tree" || fail "install writes something else"
echo "install: $(find "$work/native-tree" -type f | wc -l) files"
echo "aarch64: $((passed + 1)) passed, 0 failed"
