#!/bin/sh
# guest-host.sh FILE... -- COMMAND [ARG...]   runs COMMAND in a guest that shares this machine's file system (vm.sh run -s /), with that
# as its root, read-only below a layer in the guest's memory, so that runtimes and tools are there. FILEs are copied to memory first: they
# can be built again in the meantime.
set -eu

files=
while [ "$1" != -- ]; do
	files="$files $1"
	shift
done
shift
# This machine's file system has no modules of the guest's kernel.
modprobe veth
mkdir /new /layer
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new
for part in proc sys dev; do mount --rbind "/$part" "/new/$part"; done
for part in tmp run var/lib; do mount -t tmpfs -o mode=0755 "$part" "/new/$part"; done
chmod 1777 /new/tmp
for file in $files; do cp "/new$file" /layer/copy && cp /layer/copy "/new$file" && rm /layer/copy; done
# Not only chroot: an exec of runc enters the mount namespace at its real root.
cd /new
pivot_root . mnt
exec chroot . /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
