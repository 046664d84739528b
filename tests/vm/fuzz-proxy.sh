#!/bin/bash
# fuzz-proxy.sh E2E KERNEL   runs the hostile calls of tests/e2e/proxy_fuzz.rs under another kernel, for FUZZ_SECONDS. E2E is the test
# binary. The guest has this machine's file system, so that runc and bpftool are there: guest-host.sh.
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
"$here/vm.sh" run "$2" -s / -m 3072 -t $((seconds * 2 + 600)) -- sh "/host$here/guest-host.sh" "$binary" "$program" -- \
	env FUZZ_SECONDS="$seconds" FUZZ_SEED="${FUZZ_SEED:-$RANDOM}" TEST_PROGRAMS="$programs" \
	"$binary" --nocapture --test-threads=1 proxy_fuzz::with_hooks
