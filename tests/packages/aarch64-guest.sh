#!/bin/bash
# aarch64-guest.sh BINARY   a token, XDP and a cgroup program with the program for aarch64, under Debian's kernel for arm64 in QEMU.
#
# Exit status 77, with the reason: it cannot be had here.
set -euo pipefail
[ $# = 1 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
source=$(readlink -f "$(dirname "$(readlink -f "$0")")/../..")
binary=$(readlink -e "$1")
"$source/tests/setup.sh" qemu-system-arm cpio >&2
tree() { # NAME SUITE PACKAGE...
  local status=0 answer
  answer=$("$source/tests/lab/suite.sh" --tree "$@") || status=$?
  [ $status = 0 ] || { echo "${answer##*$'\n'}" >&2; exit $status; }
  echo "${answer##*$'\n'}"
}
kernel=$(tree kernel-arm64 trixie linux-image-arm64:arm64)
busybox=$(tree busybox-arm64 trixie busybox-static:arm64)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root"/{bin,proc,sys,dev,run,tmp,etc/bpfman-hook,var/cache}
cp "$busybox/usr/bin/busybox" "$work/root/bin/busybox"
cp "$binary" "$work/root/bin/bpfman-hook"
cp "$source/tests/bpf/demo.bpf.o" "$work/root/demo.o"
cat >"$work/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
ip link set lo up
said() { echo "said: $*"; }
said "$(uname -m) $(uname -r) $(bpfman-hook version)"
bpfman-hook load file --path /demo.o --attach 'xdp:count_packets iface=lo' --application try && said xdp loaded
ping -c 2 -q 127.0.0.1
bpfman-hook list links && said links listed
bpfman-hook unload --application try && said unloaded
bpfman-hook token create --exec --delegate sockets -- /bin/bpfman-hook token probe && said token used
# A container as a runtime makes one: a process in a cgroup and a network of its own, a bundle, and the state on standard input.
bpfman-hook image build oci:/image:v1 /demo.o
printf '[[image]]\nrepository = "oci:/image"\nunsigned = true\n[[container]]\nprograms = ["cgroup_skb"]\n' >/etc/bpfman-hook/policy.toml
mkdir -p /sys/fs/cgroup/web /bundle/rootfs
unshare -m -n sleep 100 &
pid=$!
echo "$pid" >/sys/fs/cgroup/web/cgroup.procs
cat >/bundle/config.json <<'CONFIG'
{ "ociVersion": "1.0.2", "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["sleep", "100"] }, "root": { "path": "rootfs" },
  "annotations": { "hook.bpfman.io/image": "oci:/image:v1", "hook.bpfman.io/programs": "cgroup_skb:count_egress" },
  "linux": { "cgroupsPath": "/web", "namespaces": [{ "type": "mount" }, { "type": "network" }] } }
CONFIG
state() { printf '{"ociVersion":"1.0.2","id":"web","status":"%s","pid":%s,"bundle":"/bundle","annotations":{"hook.bpfman.io/image":"oci:/image:v1","hook.bpfman.io/programs":"cgroup_skb:count_egress"}}' "$1" "$2"; }
sleep 1
state created "$pid" | bpfman-hook hook createRuntime || cat /run/bpfman-hook/log
bpfman-hook list containers
bpfman-hook list links | grep -q 'cgroup_skb' && said cgroup program attached
kill "$pid"
state stopped 0 | bpfman-hook hook poststop
[ -z "$(bpfman-hook list links -q)" ] && said cgroup program gone
poweroff -f
INIT
chmod 755 "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"
timeout 300 qemu-system-aarch64 -M virt -cpu max -m 1024 -smp 2 -accel tcg,thread=multi -nographic -no-reboot -nic none \
  -kernel "$(echo "$kernel"/boot/vmlinuz-*-arm64)" -initrd "$work/initrd" -append 'console=ttyAMA0 quiet panic=-1' </dev/null >"$work/console" 2>&1 || true
sed -n 's/\r$//; /^said: /p' "$work/console"
for word in 'xdp loaded' 'links listed' 'unloaded' 'token used' 'cgroup program attached' 'cgroup program gone'; do
  grep -q "^said: $word" "$work/console" || { cat "$work/console"; echo "FAILED: the guest did not say: $word" >&2; exit 1; }
done
echo "aarch64 in a guest: 6 passed, 0 failed"
