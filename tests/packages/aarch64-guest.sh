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
poweroff -f
INIT
chmod 755 "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"
timeout 300 qemu-system-aarch64 -M virt -cpu max -m 1024 -smp 2 -accel tcg,thread=multi -nographic -no-reboot -nic none \
  -kernel "$(echo "$kernel"/boot/vmlinuz-*-arm64)" -initrd "$work/initrd" -append 'console=ttyAMA0 quiet panic=-1' </dev/null >"$work/console" 2>&1 || true
sed -n 's/\r$//; /^said: /p' "$work/console"
for word in 'xdp loaded' 'links listed' 'unloaded' 'token used'; do
  grep -q "^said: $word" "$work/console" || { cat "$work/console"; echo "FAILED: the guest did not say: $word" >&2; exit 1; }
done
echo "aarch64 in a guest: 4 passed, 0 failed"
