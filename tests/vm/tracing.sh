#!/bin/bash
# tracing.sh PROGRAM [KERNEL...]   runs programs that trace (bpftrace, bcc's) in containers without capabilities under other kernels,
# through the proxy of PROGRAM, and writes what works to tracing-clients.tsv beside this file, or to TRACING_OUT. A line is
#   client <TAB> version <TAB> what it does <TAB> scope <TAB> kernel <TAB> works, or why not
# Exit status 77, with the reason, where kernels or packages cannot be had on this machine at all; any other is a failure.
#
# TRACING=all runs every program, and not only those of guest-tracing.sh that stand for others. Only then is the table written.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
[ $# -ge 1 ] || { echo "usage: $0 PROGRAM [KERNEL...]" >&2; exit 2; }
program=$(readlink -e "$1")
shift
[ $# -gt 0 ] || set -- 6.1 6.12 7.2

if ! reason=$("$here/vm.sh" check); then
	echo "SKIPPED: tracing through the proxy was not tested: $reason" >&2
	exit 77
fi
# bpftrace, and bcc's tools that need no compiler.
if ! packages=$("$here/vm.sh" packages trixie bpftrace libbpf-tools dash coreutils) || ! "$here/vm.sh" fetch "$@"; then
	echo "SKIPPED: tracing through the proxy was not tested: kernels or packages could not be fetched" >&2
	exit 77
fi

# On the file system of the packages, because these are linked and not copied.
stage=$(mktemp -d "${packages%/*}/stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
cp -al "$packages/root" "$stage/root"
for folder in bin sbin lib lib64; do
	mkdir -p "$stage/root/usr/$folder"
	[ -e "$stage/root/$folder" ] || ln -s "usr/$folder" "$stage/root/$folder"
done
mkdir -p "$stage/root"/{proc,sys,dev,tmp,run}
[ -e "$stage/root/usr/bin/sh" ] || ln -s dash "$stage/root/usr/bin/sh"
touch "$stage/root/script"
cp "$packages/versions" "$here/guest-tracing.sh" "$stage/"
objcopy --strip-debug "$program" "$stage/bpfman-hook"
# The runtime of this machine, with its libraries: it runs itself again, so that ld.so cannot be put before it.
runc=$(PATH=$PATH:/usr/sbin command -v runc)
mkdir "$stage/runc"
cp -L "$runc" "$stage/runc/"
ldd "$runc" | grep -o '/[^ ]*' | xargs -I '{}' cp -L '{}' "$stage/runc/"

# The container: root without any capability, and tracefs, read-only, of which these programs read lists and formats.
(cd "$stage" && "$runc" spec)
python3 - "$stage/config.json" <<'P'
import json, sys
spec = json.load(open(sys.argv[1]))
process = spec["process"]
process.update(terminal=False, args=["/bin/sh", "/script"], env=["PATH=/usr/sbin:/usr/bin", "HOME=/tmp", "PYTHONUNBUFFERED=1"])
process["capabilities"] = {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")}
process["rlimits"] = [{"type": "RLIMIT_MEMLOCK", "hard": 1 << 26, "soft": 1 << 26}, {"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096}]
spec["root"] = {"path": "/host/root", "readonly": True}
spec["mounts"] += [
    {"destination": "/sys/kernel/tracing", "type": "bind", "source": "/sys/kernel/tracing", "options": ["rbind", "ro"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    {"destination": "/script", "type": "bind", "source": "/run/script", "options": ["bind", "ro"]},
]
hook = lambda stage: [{"path": "/usr/local/bin/bpfman-hook", "args": ["bpfman-hook", "hook", stage], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "timeout": 60}]
spec["hooks"] = {stage: hook(stage) for stage in ("createRuntime", "poststop")}
spec["annotations"] = {"hook.bpfman.io/delegate": "tracing", "hook.bpfman.io/delegate-via": "proxy"}
spec["linux"]["seccomp"] = "SECCOMP"
json.dump(spec, open(sys.argv[1], "w"))
P

results=$(mktemp)
trap 'rm -rf "$stage" "$results"' EXIT
failed=''
for kernel; do
	"$here/vm.sh" run "$kernel" -s "$stage" -o "$stage/out" -m 2048 -t "${TRACING_LIMIT:-600}" -- \
		sh guest-tracing.sh "$kernel" "${TRACING:-some}" || failed="$failed $kernel"
	cat "$stage/out/results.tsv" >>"$results" 2>/dev/null || true
	rm -rf "$stage/out"
done
cat "$results"
[ "${TRACING:-some}" != all ] || cp "$results" "${TRACING_OUT:-$here/tracing-clients.tsv}"
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
