#!/bin/sh
# guest-systemd.sh: in the guest, boots the staged root with Debian's systemd as pid 1 of a pid namespace, and runs systemd-check.sh
# there as a service. Prints what it said; the exit status is its own.
set -eu

new=/new
mkdir -p $new
mount -t tmpfs -o mode=0755 root $new
cp -a /host/root/. $new/
for directory in proc sys dev run tmp var/tmp old; do mkdir -p "$new/$directory"; done
cat >/inside.sh <<'INSIDE'
set -e
mount --make-rprivate /
cd /new
mount -t proc proc proc
mount -t sysfs sys sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t devtmpfs dev dev
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs -o mode=1777 tmp tmp
pivot_root . old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=check.target --log-target=console --show-status=0
INSIDE
status=0
# systemd ends with the status of the service (SuccessAction=exit).
unshare -m -p -f sh /inside.sh >/tmp/systemd.log 2>&1 || status=$?
if ! cat $new/said 2>/dev/null || ! grep -q '^all is as it should be$' $new/said; then
	tail -n 60 /tmp/systemd.log >&2
	echo "systemd ended with $status" >&2
	exit 1
fi
