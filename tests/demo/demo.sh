#!/bin/bash
# demo.sh BINARY   shows what bpfman-hook does, on this machine, with nothing but runc and what the demo makes itself.
#
# Everything is below one directory that is removed at the end, whatever happens; the installed bpfman-hook, if there is one,
# is neither used nor touched.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
binary=$(readlink -f "$1")
object=$here/../bpf/demo.bpf.o
demo=/var/lib/bpfman-hook-demo-$$
root=$demo/root
probe_needs=6.9

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi
say() { printf '%s\n' "$@"; }
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# indented: lines of a command, cut where they get too long to read.
indented() { awk '{ print "    " (length($0) > 140 ? substr($0, 1, 139) "…" : $0) }'; }
fail() { say "" "demo: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "the demo makes namespaces, mounts and BPF objects: run it as root, for example \`sudo make demo\`"

# --- What must be installed -------------------------------------------------------------------------------------------------
missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need runc runc
need openssl openssl
need bpftool bpftool
{ [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; } || missing="$missing busybox-static"
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || fail "these are missing:$missing"
    say "Installing what is missing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# The tests make BPF objects too, and each would find what the other has.
exec 9>/run/bpfman-hook-test.lock
flock 9

# --- The world of the demo --------------------------------------------------------------------------------------------------
ours() { "$binary" --root "$root" "$@"; }
container() { runc --root "$demo/runc" "$@"; }
objects() { for kind in prog map link; do bpftool "$kind" show | sed -n "s/^\([0-9]*\):.*/$kind \1/p"; done | sort; }

running=
# shellcheck disable=SC2317,SC2329 # called by the trap
clean() {
    status=$?
    trap - EXIT
    exec 3>&- || true
    for id in counted plain; do container delete -f "$id" >/dev/null 2>&1 || true; done
    [ -z "$running" ] || wait "$running" 2>/dev/null || true
    umount -l "$root/run/bpfman-hook/fs" 2>/dev/null || true
    rm -rf "$demo"
    exit $status
}
trap clean EXIT
trap 'exit 130' INT TERM

umask 022
mkdir -p "$root/etc/bpfman-hook/keys" "$demo/image" "$demo/bin"
cp "$binary" "$demo/bin/bpfman-hook"

tokens=yes
release=$(uname -r)
[ "$(printf '%s\n%s\n' "$probe_needs" "$release" | sort -V | head -n 1)" = "$probe_needs" ] || tokens=

title "bpfman-hook: a demonstration on Linux $release"
say "A container asks, in its annotations, for eBPF programs and for the right to load its own." \
    "runc runs bpfman-hook before the container starts and after it has stopped. There is no daemon." \
    "Everything here is below $demo and goes away at the end."
[ -n "$tokens" ] || say "" "This kernel is older than $probe_needs and has no BPF tokens: steps 6 and 7 are left out, and \`delegate\` from the request."

# --- 1 The image ------------------------------------------------------------------------------------------------------------
title "1. A bytecode image, built and signed here"
openssl ecparam -name prime256v1 -genkey -noout -out "$demo/demo.key" 2>/dev/null
openssl ec -in "$demo/demo.key" -pubout -out "$root/etc/bpfman-hook/keys/demo.pub" 2>/dev/null
digest=$("$here/image.sh" "$object" "$demo/image" v1 "$demo/demo.key")
say "It holds one BPF object with an XDP and a cgroup program that count packets in one map." "Digest: $digest"

delegation=
[ -z "$tokens" ] || delegation='delegate    = ["sockets"]
host-scope  = true'
cat >"$root/etc/bpfman-hook/policy.toml" <<POLICY
[[image]]
name        = "demo"
repository  = "oci:$demo/image"
signed-by   = { key = "$root/etc/bpfman-hook/keys/demo.pub" }

[[container]]
programs    = ["xdp", "cgroup_skb"]
$delegation
POLICY
say "The administrator's policy says who must have signed it and what a container may ask for:"
indented <"$root/etc/bpfman-hook/policy.toml"
[ -z "$tokens" ] || say "" "host-scope = true is for the token: a program that the container loads with it reaches beyond the container." \
    "What an xdp program reaches on this kernel (bpfman-hook token explain --scope):"
[ -z "$tokens" ] || ours token explain --scope | grep -E '^(TYPE|xdp) ' | indented

# --- 2 The request ----------------------------------------------------------------------------------------------------------
# bundle NAME ANNOTATIONS HOOKS SCRIPT: an OCI bundle with a user namespace, CAP_BPF and CAP_NET_ADMIN in it.
bundle() {
    mkdir -p "$demo/$1/rootfs/bin" "$demo/$1/rootfs/proc" "$demo/$1/rootfs/sys" "$demo/$1/rootfs/dev"
    cp /bin/busybox "$demo/$1/rootfs/bin/busybox"
    cp "$binary" "$demo/$1/rootfs/bin/bpfman-hook"
    for applet in sh nc ip id cat grep echo; do ln -sf busybox "$demo/$1/rootfs/bin/$applet"; done
    printf '%s\n' "$4" >"$demo/$1/rootfs/workload"
    chown -R 100000:100000 "$demo/$1/rootfs"
    caps='["CAP_BPF","CAP_NET_ADMIN"]'
    ids='[{"containerID":0,"hostID":100000,"size":65536}]'
    cat >"$demo/$1/config.json" <<CONFIG
{
  "ociVersion": "1.0.2",
  "process": {
    "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/sh", "/workload"], "env": ["PATH=/bin"], "noNewPrivileges": true,
    "capabilities": { "bounding": $caps, "effective": $caps, "permitted": $caps, "inheritable": $caps, "ambient": $caps }
  },
  "root": { "path": "rootfs", "readonly": true },
  "hostname": "$1",
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }
  ],
  "annotations": $2,
  "hooks": $3,
  "linux": {
    "namespaces": [{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"user"},{"type":"cgroup"}],
    "uidMappings": $ids, "gidMappings": $ids
  }
}
CONFIG
}
hook() { printf '[{"path":"%s","args":["bpfman-hook","hook","%s","--root","%s"],"timeout":30}]' "$binary" "$1" "$root"; }
hooks="{\"createRuntime\":$(hook createRuntime),\"poststop\":$(hook poststop)}"

asks_token=
[ -z "$tokens" ] || asks_token=",
    \"hook.bpfman.io/delegate\": \"sockets\""
annotations="{
    \"hook.bpfman.io/image\":    \"oci:$demo/image:v1\",
    \"hook.bpfman.io/programs\": \"xdp:count_packets iface=lo; cgroup_skb:count_egress\"$asks_token
}"
title "2. What the container asks for: annotations in its config.json"
say "$annotations" | sed '/^[{}]$/d'

# The workload waits for a line at each step, so that we can look at it from outside in between.
# shellcheck disable=SC2016 # expanded in the container
workload='
traffic() { for i in 1 2 3 4 5; do nc -w 1 127.0.0.1 9 </dev/null 2>/dev/null; done; }
echo ready; read go
traffic
echo traffic; read go
id
echo "user namespace:" $(cat /proc/self/uid_map)
ip link add v0 type veth && ip link set v0 up && ip link set veth0 up && ip addr add 192.0.2.1/24 dev v0
(while :; do nc -w 1 192.0.2.2 9 </dev/null 2>/dev/null; done) & noise=$!
bpfman-hook token probe --iface veth0 --count 2
echo "exit status $?"
kill $noise
echo probed; read go
exit 7'
bundle counted "$annotations" "$hooks" "$workload"

# --- 3 Start ----------------------------------------------------------------------------------------------------------------
before=$(objects)
mounts() { awk -v demo="$demo" 'index($0, demo) || $5 ~ "^/(sys/fs/bpf|run/bpfman-hook)" { print $5 }' /proc/self/mountinfo | sort; }
mounts_before=$(mounts)
mkfifo "$demo/in"
container run -b "$demo/counted" counted <"$demo/in" >"$demo/out" 2>"$demo/err" &
running=$!
exec 3>"$demo/in"
# heard WORD: waits until the workload has said it.
heard() {
    for _ in $(seq 600); do
        if grep -q "^$1" "$demo/out"; then return; fi
        if ! kill -0 "$running" 2>/dev/null; then break; fi
        sleep 0.05
    done
    indented <"$demo/err" >&2
    fail "the container did not get to the step \"$1\""
}
heard ready
title "3. The container runs. The image was verified, the programs are attached"
ours list containers | indented
say "" "What is on record about the image of the first program (inspect counted -o json):"
ours inspect counted -o json | awk '/"programs"/ { inside = 1 } inside && /"(name|type|scope|image|digest|rule|result|by|layout)"/ { print }
    /"links"/ { inside = 0 }' | indented

# --- 4 Traffic --------------------------------------------------------------------------------------------------------------
# The map `packets` among the objects that were not there before.
map=$(bpftool map show | sed -n 's/^\([0-9]*\):.* name packets .*/\1/p' | while read -r id; do
    say "$before" | grep -qx "map $id" || echo "$id"; done | tail -n 1)
[ -n "$map" ] || fail "there is no map \"packets\""
counted() { bpftool map dump id "$map" | indented; }
total() { bpftool map dump id "$map" | awk '/"value"/ { sum += $2 } END { print sum + 0 }'; }
title "4. Traffic in the container is counted"
say "The counters before (bpftool map dump id $map):"
counted
quiet=$(total)
echo go >&3
heard traffic
say "The workload tried five times to connect to a closed port of its own lo: five SYN, five RST. The counters now:"
counted
[ "$(total)" -ge $((quiet + 10)) ] || fail "the programs did not count the container's traffic"

# --- 5, 6 Tokens ------------------------------------------------------------------------------------------------------------
if [ -n "$tokens" ]; then
    title "5. A bpffs with delegation is mounted in the container"
    init=$(container state counted | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
    say "In the mount table of the container's process $init, as the host sees it:"
    grep -h ' - bpf ' "/proc/$init/mountinfo" | tr ' ' '\n' | sed -n '5p;$p' | tr ',' '\n' | indented

    title "6. A process in the container makes its own token, and loads and attaches its own program with it"
    echo go >&3
    heard probed
    sed -n '/^traffic/,/^probed/p' "$demo/out" | sed '1d;$d' | indented
    grep -q '^exit status 0' "$demo/out" || fail "the process in the container could not use its token"

    title "7. The same process in a container that did not ask"
    bundle plain '{}' "$hooks" 'bpfman-hook token probe; echo "exit status $?"'
    container run -b "$demo/plain" plain </dev/null >"$demo/plain.out" 2>&1 || true
    indented <"$demo/plain.out"
    if grep -q '^exit status 0' "$demo/plain.out"; then fail "a container that asked for nothing has a token"; fi
else
    echo go >&3
    heard probed
fi

# --- 8 End ------------------------------------------------------------------------------------------------------------------
title "8. The container exits"
echo go >&3
exec 3>&-
status=0
wait "$running" || status=$?
running=
say "Its exit status is its own: $status"
[ "$status" = 7 ] || fail "the exit status should be 7"

title "9. What is left"
# The kernel frees objects a moment after the last reference is gone.
for _ in $(seq 100); do
    left=$(objects | comm -13 <(say "$before") -)
    [ -n "$left" ] || break
    sleep 0.05
done
[ -z "$left" ] || fail "left behind: $left"
say "Programs, maps and links that were not there before (bpftool): none"
pins=$(find "$root/run/bpfman-hook/fs" -mindepth 1 ! -name '*.debug' 2>/dev/null || true)
[ -z "$pins" ] || fail "pins are left: $pins"
say "Pins in our bpffs: none"
ours list containers -q >"$demo/records"
[ ! -s "$demo/records" ] || fail "records are left: $(cat "$demo/records")"
say "Records: none"
umount "$root/run/bpfman-hook/fs"
[ "$(mounts)" = "$mounts_before" ] || fail "mounts are left: $(mounts)"
say "Mounts: none but our own bpffs, which stays for the next container; the demo has now unmounted it"

title "Done."
[ -n "$tokens" ] || say "Not shown, because this kernel is older than $probe_needs: the delegated bpffs and the token."
