#!/bin/busybox sh
# shellcheck shell=dash
# guest-init.sh: /init of the test guest. Stage 1 leaves the initramfs for a tmpfs (pivot_root works there), stage 2
# mounts what BPF tests need, runs /run/vm/command with its output on virtio-serial ports, and powers off.
bb=/bin/busybox
if [ "${1:-}" != stage2 ]; then
  $bb mount -t tmpfs -o mode=0755 root /new
  $bb cp -a /bin /lib /init /new/
  exec $bb switch_root /new /init stage2
fi
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb
$bb mkdir -p /dev /etc /host /out /proc /root /run/vm /sbin /sys /tmp /usr/bin /usr/sbin /var/tmp
$bb --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t securityfs sec /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
mount -t debugfs debug /sys/kernel/debug
mount -t cgroup2 cgroup /sys/fs/cgroup
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'root:x:0:' >/etc/group
hostname guest
for m in virtio_pci virtio_console 9pnet_virtio 9p; do modprobe $m 2>/dev/null; done
ip link set lo up

port() { # NAME -> the device of the virtio-serial port, once it is there
  n=0
  while [ $n -lt 100 ]; do
    for p in /sys/class/virtio-ports/vport*; do
      if [ "$(cat "$p/name" 2>/dev/null)" = "$1" ] && [ -e "/dev/${p##*/}" ]; then
        echo "/dev/${p##*/}"
        return 0
      fi
    done
    n=$((n + 1))
    usleep 50000
  done
  return 1
}
share() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$2" "$1" "$3"; }

exec 3>"$(port ctl)"
echo "boot $(cut -d' ' -f1 /proc/uptime) $(uname -r) lsm=$(cat /sys/kernel/security/lsm)" >&3
if share run ro /run/vm && share host ro,cache=loose /host && { [ ! -e /run/vm/has-out ] || share out rw /out; }; then
  cd /host || exit
  setsid sh /run/vm/command >"$(port out)" 2>"$(port err)" </dev/null 3>&-
  echo "exit $?" >&3
else
  echo "error cannot mount the shares" >&3
fi
echo "down $(cut -d' ' -f1 /proc/uptime)" >&3
sync
poweroff -f
