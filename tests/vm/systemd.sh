#!/bin/bash
# systemd.sh PROGRAM [KERNEL]   the proxy of bpf(2) and the guard with Debian's systemd as pid 1, in a guest. Exit status 77, with the
# reason, where this cannot run on this machine at all; any other is a failure.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
[ $# -ge 1 ] || { echo "usage: $0 PROGRAM [KERNEL]" >&2; exit 2; }
program=$(readlink -e "$1")
kernel=${2:-6.12}

skip() {
	echo "SKIPPED: the proxy and the guard were not tested with systemd as pid 1: $1" >&2
	exit 77
}
reason=$("$here/vm.sh" check) || skip "$reason"
[ -x /lib/systemd/systemd ] || skip "this machine has no systemd"
"$here/vm.sh" fetch "$kernel" || skip "Linux $kernel could not be fetched"

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/root
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,usr/local/bin,etc/systemd/system,etc/bpfman-hook,lib/systemd/system,bundle/rootfs,root,home}
put() { # FILE...: a file and the libraries that it needs, at the same paths
	local file
	for file; do
		{ ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true; echo "$file"; } | while read -r part; do
			mkdir -p "$root$(dirname "$part")"
			cp -L "$part" "$root$part"
		done
	done
}
runc=$(PATH=$PATH:/usr/sbin command -v runc)
put /lib/systemd/systemd /bin/systemctl /bin/mount /bin/umount "$runc"
cp -L /lib/systemd/system/*.target "$root/lib/systemd/system/"
cp -L "$(PATH=$PATH:/usr/sbin command -v busybox)" "$root/bin/busybox"
for applet in cat cut env find grep head mkdir mkfifo sed sh stat tail usleep wc; do ln -s busybox "$root/bin/$applet"; done
ln -s /lib/systemd/systemd "$root/sbin/init"
objcopy --strip-debug "$program" "$root/usr/bin/bpfman-hook"
cc -O2 -static -pthread -o "$root/bundle/rootfs/client" "$here/../e2e/proxy_client.c"
cp "$here/systemd-check.sh" "$root/check.sh"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
printf '[gate]\nexecutables = []\n[[container]]\nproxy = ["sockets"]\n' >"$root/etc/bpfman-hook/policy.toml"
# It boots with the gate in force: only bpfman-hook may load programs, and what runc and systemd need.
sed 's|/usr/local/bin/|/usr/bin/|' "$here/../../packaging/systemd/bpfman-hook-gate.service" >"$root/etc/systemd/system/bpfman-hook-gate.service"
printf '[Unit]\nRequires=bpfman-hook-gate.service check.service\n' >"$root/etc/systemd/system/check.target"
cat >"$root/etc/systemd/system/devices.service" <<'UNIT'
[Service]
Type=oneshot
DevicePolicy=closed
IPAddressDeny=any
ExecStart=/bin/sh -c 'echo >/dev/null && ! echo >/dev/kmsg'
UNIT
cat >"$root/etc/systemd/system/check.service" <<'UNIT'
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
After=bpfman-hook-gate.service
[Service]
Type=oneshot
ExecStart=/bin/sh /check.sh
StandardOutput=file:/said
StandardError=file:/said
UNIT
"$program" proxy profile >"$stage/profile.json"
(cd "$stage" && "$runc" spec && python3 - "$root/bundle/config.json" <<'PYTHON'
import json, sys
config = json.load(open("config.json"))
process = config["process"]
process.update(terminal=False, args=["/client", "map", "xdp", "wait", "prog"], user={"uid": 65534, "gid": 65534})
process["capabilities"] = {name: [] for name in process["capabilities"]}
config["linux"]["seccomp"] = json.load(open("profile.json"))
config["mounts"] = [mount for mount in config["mounts"] if mount["type"] in ("proc", "tmpfs")]
config["annotations"] = {"hook.bpfman.io/delegate": "sockets", "hook.bpfman.io/delegate-via": "proxy"}
stage = lambda name: [{"path": "/usr/bin/bpfman-hook", "args": ["bpfman-hook", "hook", name]}]
config["hooks"] = {name: stage(name) for name in ("createRuntime", "poststop")}
json.dump(config, open(sys.argv[1], "w"))
PYTHON
)
rm -f "$stage/config.json" "$stage/profile.json"
cp "$here/guest-systemd.sh" "$stage/"
"$here/vm.sh" run "$kernel" -s "$stage" -- sh guest-systemd.sh
