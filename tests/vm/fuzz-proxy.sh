#!/bin/bash
# fuzz-proxy.sh E2E KERNEL   runs the hostile calls of tests/e2e/proxy_fuzz.rs under another kernel, for FUZZ_SECONDS. E2E is the test
# binary. The guest has this machine's file system, read-only below a layer in its memory, so that runc and bpftool are there.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
[ $# = 2 ] || { echo "usage: $0 E2E KERNEL" >&2; exit 2; }
binary=$(readlink -e "$1")
program=$(readlink -e "${binary%/*}/../bpfman-hook")
seconds=${FUZZ_SECONDS:-3600}
# The guest would take minutes to compile them.
programs=$(mktemp -d /var/tmp/bpfman-hook-fuzz.XXXXXX)
trap 'rm -rf "$programs"' EXIT
for name in proxy_client proxy_fuzz; do
	cc -O2 -static -pthread -o "$programs/$name" "$here/../e2e/$name.c"
done
# shellcheck disable=SC2016 # the guest's shell expands it
"$here/vm.sh" run "$2" -s / -m 3072 -t $((seconds * 2 + 600)) -- sh -c '
	set -eu
	mkdir /new /layer
	mount -t tmpfs layer /layer
	mkdir /layer/upper /layer/work
	mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new
	for part in proc sys dev; do mount --rbind "/$part" "/new/$part"; done
	for part in tmp run var/lib; do mount -t tmpfs -o mode=0755 "$part" "/new/$part"; done
	chmod 1777 /new/tmp
	# Copies, so that both can be built again in the meantime.
	for file in "$1" "$4"; do cp "/new$file" /layer/copy && cp /layer/copy "/new$file"; done
	# Not only chroot: an exec of runc enters the mount namespace at its real root.
	cd /new && pivot_root . mnt
	exec chroot . /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin  \
		FUZZ_SECONDS="$2" FUZZ_SEED="$3" TEST_PROGRAMS="$5" "$1" --nocapture --test-threads=1 \
		proxy_fuzz::with_hooks
' sh "$binary" "$seconds" "${FUZZ_SEED:-$RANDOM}" "$program" "$programs"
