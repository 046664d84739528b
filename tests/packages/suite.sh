#!/bin/bash
# suite.sh BINARY [CASE...]   installs, uses and removes the packages of BINARY in a clean Debian without a compiler, and walks the
# quick starts there. CASE: release, deb, upgrade, living, rpm, first-hour, probe, image, docker, crio, kubernetes.
#
# The blocks of commands come from docs/quickstart, word by word: nothing else is typed. What stands for the user's own is made here: a
# registry on the loopback interface, a container image, the package in the current directory. Exit status 77, with the reason, where
# this cannot run at all; any other but 0 is a failure.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
source=$(readlink -f "$here/../..")
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
binary=$(readlink -e "$1")
shift
[ $# -gt 0 ] || set -- release deb upgrade living rpm first-hour probe image docker crio kubernetes
fail() { echo "FAILED: $*" >&2; exit 1; }
skipped() { echo "SKIPPED $*" | tee -a "${BPFMAN_HOOK_TEST_SKIPPED:-/dev/null}" >&2; }
answer=$("$here/root.sh") || { status=$?; [ $status != 77 ] || skipped "the packages: $answer"; exit $status; }
clean=${answer##*$'\n'}
"$source/tests/setup.sh" rpm docker-registry busybox-static bpftool openssl clang libbpf-dev >&2

answer=$("$source/tests/lab/docker/packages.sh" trixie) &&
  docker_root=${answer##*$'\n'} || docker_root=
# What engine() takes; a suite that cannot be had is said there.
for suite in trixie sid; do "$source/tests/lab/suite.sh" "$suite" cosign >/dev/null || true; done

# release: the same input gives the same bytes in another directory, the signature is one that cosign takes, and the SBOM names the crates.
# It is made outside of the network below: cargo asks its registry for the crates of other systems.
release() {
  local work cosign name
  work=$(mktemp -d)
  export COSIGN_PASSWORD=
  cosign=$("$source/tests/lab/suite.sh" trixie cosign | tail -n 1)/cosign/usr/bin/cosign
  if [ ! -x "$cosign" ] || ! "$source/tests/lab/suite.sh" sid cargo-cyclonedx libc6 libgcc-s1 >/dev/null; then
    skipped "release: no cosign or no cargo-cyclonedx of Debian"
    return 0
  fi
  (cd "$work" && "$cosign" generate-key-pair 2>/dev/null)
  LIGHT=1 COSIGN_KEY=$work/cosign.key "$source/packaging/build.sh" "$binary" "$work/one" 2>/dev/null
  # The time of the last commit is not in a copy.
  mkdir "$work/copy"
  cp -r "$source"/{Cargo.toml,*.md,LICENSE,docs,nri,packaging} "$work/copy"
  mkdir "$work/copy/tests"
  cp -r "$source/tests/bpf" "$work/copy/tests"
  LIGHT=1 SBOM=no SOURCE_DATE_EPOCH=$(git -C "$source" log -1 --format=%ct) "$work/copy/packaging/build.sh" "$binary" "$work/two" 2>/dev/null
  diff <(grep -v cdx "$work/one/SHA256SUMS") "$work/two/SHA256SUMS" || fail "the second time gives other bytes"
  "$cosign" verify-blob --key "$work/one/SHA256SUMS.pub" --signature "$work/one/SHA256SUMS.sig" --insecure-ignore-tlog=true \
    "$work/one/SHA256SUMS" >/dev/null 2>&1 || fail "cosign does not take the signature"
  ! "$cosign" verify-blob --key "$work/one/SHA256SUMS.pub" --signature "$work/one/SHA256SUMS.sig" --insecure-ignore-tlog=true \
    "$work/two/SHA256SUMS" >/dev/null 2>&1 || fail "cosign takes the signature for other sums"
  (cd "$work/one" && sha256sum --check --quiet SHA256SUMS) || fail "SHA256SUMS"
  # The SBOM: what Cargo.toml names, and no directory of this machine.
  name=$(echo "$work"/one/*.cdx.json)
  python3 - "$name" "$source" <<'PYTHON' || fail "the SBOM"
import json, sys, tomllib
bom = json.load(open(sys.argv[1]))
assert bom["bomFormat"] == "CycloneDX" and bom["metadata"]["component"]["name"] == "bpfman-hook", bom["metadata"]
found = {component["name"]: component for component in bom["components"]}
missing = set(tomllib.load(open(sys.argv[2] + "/Cargo.toml", "rb"))["dependencies"]) - set(found)
assert not missing, missing
assert all(component["purl"].startswith("pkg:cargo/") for component in found.values())
assert sys.argv[2] not in open(sys.argv[1]).read()
PYTHON
  rm -rf "$work"
}

# A network of its own: the port of the registry, podman's bridge and its packet filter are not this machine's.
if [ -z "${INSIDE:-}" ]; then
  case " $* " in *" release "*) echo "--- release" && release ;; esac
  exec env INSIDE=1 unshare --net "$0" "$binary" "$@"
fi
ip link set lo up
# The tests make BPF objects too, and each would find what the other has.
exec 9>/run/bpfman-hook-test.lock
flock 9

place=/var/lib/bpfman-hook-test-packages
root=$place/root
passed=0
registry=
step() { echo "--- $*"; }
objects() { for kind in prog map link; do bpftool "$kind" show | sed -n "s/^\([0-9]*\):.*/$kind \1/p"; done | sort; }
# in_root COMMAND...: there, as root, in the directory where the user's files are.
in_root() { env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 COSIGN_PASSWORD= DEBIAN_FRONTEND=noninteractive chroot "$root" sh -c 'cd /root && exec "$@"' sh "$@"; }
unmount() { awk -v root="$root" '$2 == root || index($2, root "/") == 1 { print $2 }' /proc/mounts | sort -r | while read -r point; do umount -l "$(printf '%b' "$point")"; done; }
# Processes that were started there, and only those. Once the root is unmounted they cannot be told from others.
end_processes() {
  for process in /proc/[0-9]*; do
    [ "$(readlink "$process/root")" != "$root" ] || kill -KILL "${process#/proc/}" 2>/dev/null || true
  done
}
remove() {
  [ -z "$registry" ] || kill "$registry" 2>/dev/null || true
  end_processes
  [ ! -d "$root" ] || unmount
  rm -rf --one-file-system "$place"
}
trap 'status=$?; remove; exit $status' EXIT
trap 'exit 130' INT TERM
remove

# fresh: a root in which nothing of ours is.
fresh() {
  if [ -d "$root" ]; then end_processes; unmount; rm -rf --one-file-system "$root" "$place/upper" "$place/work"; fi
  mkdir -p "$root" "$place/upper" "$place/work"
  chmod 755 "$place" "$place/upper"
  # A mount point: podman makes the mounts below its / private.
  mount -t overlay -o "lowerdir=$clean,upperdir=$place/upper,workdir=$place/work" overlay "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --make-rslave "$root/sys"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  for node in null zero full random urandom tty; do cp -a "/dev/$node" "$root/dev/"; done
  ln -s /proc/self/fd "$root/dev/fd"
  for at in 0 1 2; do ln -s "/proc/self/fd/$at" "$root/dev/$(echo stdin stdout stderr | cut -d ' ' -f $((at + 1)))"; done
  ln -s pts/ptmx "$root/dev/ptmx"
  mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
  mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
  mount -t tmpfs tmpfs "$root/run"
  # What maintainers' scripts make, where a tree of packages is the root.
  [ -e "$root/usr/bin/sh" ] || ln -s bash "$root/usr/bin/sh"
  [ -e "$root/etc/hosts" ] || echo '127.0.0.1 localhost' >"$root/etc/hosts"
  [ -e "$root/etc/passwd" ] || printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd"
  [ -e "$root/etc/group" ] || printf 'root:x:0:\ndocker:x:990:\n' >"$root/etc/group"
  # Settings of a machine without systemd and with few privileges; hooks, annotations and images are not among them.
  mkdir -p "$root/etc/containers" "$root/root" "$root/usr/local/bin"
  cat >"$root/etc/containers/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
CONF
  printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' >"$root/etc/containers/storage.conf"
  cp "$place"/made/*.deb "$place"/made/*.rpm "$root/root/"
  ! in_root sh -c 'command -v cc || command -v gcc || command -v clang || command -v cargo' || fail "the clean root has a compiler"
}
# listing: all files of the root, with what dpkg and the package manager themselves change left out.
listing() { (cd "$root" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/log -o -path ./var/cache -o -path ./root -o -path ./dev -o -path ./tmp \) -prune -o -print | sort); }
same() { # WHAT BEFORE AFTER
  diff <(echo "$2") <(echo "$3") || fail "$1: files differ"
}
# complete: install --check finds nothing missing but the timer, which needs systemd.
complete() {
  in_root bpfman-hook install --podman --check >"$place/check" || fail "$(cat "$place/check")"
  [ "$(grep -c '^warn' "$place/check")" = 1 ] && grep -q '^warn *gc timer' "$place/check" && return
  fail "$(cat "$place/check")"
}
# engine: a registry on localhost:5000, cosign, and the image that quick starts run.
engine() { # COSIGN-SUITE
  local cosign
  cosign=$("$source/tests/lab/suite.sh" "$1" cosign | tail -n 1)/cosign/usr/bin/cosign
  signs=
  [ -x "$cosign" ] || { skipped "$2: no cosign of Debian $1"; return 0; }
  signs=yes
  install -m 0755 "$cosign" "$root/usr/bin/cosign"
  mkdir -p "$place/image/bin" "$place/registry"
  cp "$(command -v busybox)" "$place/image/bin/busybox"
  for applet in sh sleep nc; do ln -sf busybox "$place/image/bin/$applet"; done
  [ ! -e "$root/usr/bin/podman" ] || tar -C "$place/image" --owner=0 --group=0 -c . | in_root podman import -q -c 'CMD ["/bin/sh"]' - docker.io/library/alpine >/dev/null
  if [ -z "$registry" ]; then
    printf 'version: 0.1\nlog: { level: error }\nstorage:\n  filesystem: { rootdirectory: %s }\nhttp:\n  addr: "127.0.0.1:5000"\n' "$place/registry" >"$place/registry.yml"
    docker-registry serve "$place/registry.yml" >"$place/registry.log" 2>&1 9>&- &
    registry=$!
    for _ in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/5000) 2>/dev/null && break; sleep 0.1; done
  fi
}
# block PAGE NUMBER: a block of commands of a quick start.
block() {
  awk -v wanted="$2" '/^```/ { if (inside) { inside = 0 } else if ($0 ~ /^```sh/) { inside = ++n == wanted; next } } inside' "$source/docs/quickstart/$1.md"
}
# typed PAGE NUMBER: types it into a shell in the root; what the shell prints is in the file typed.
typed() {
  local text
  text=$(block "$1" "$2")
  [ -n "$text" ] || fail "docs/quickstart/$1.md has no block $2"
  { echo 'set -e'; echo "$text"; } | in_root bash -s >"$place/typed" 2>&1 || fail "docs/quickstart/$1.md: the block $2 fails: $(cat "$place/typed")"
}

step "build the packages, and those of a next version"
mkdir -p "$place/made" "$place/next"
LIGHT=1 SBOM=no "$source/packaging/build.sh" "$binary" "$place/made" 2>/dev/null
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$source/Cargo.toml" | head -n 1)
before=$(objects)

# --- The cases --------------------------------------------------------------------------------------------------------------
deb() {
  fresh
  local files
  files=$(listing)
  in_root sh -c 'dpkg -i ./bpfman-hook_*.deb' >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  grep -q 'Next: .bpfman-hook init --help' "$place/said" || fail "postinst says nothing: $(cat "$place/said")"
  [ "$(in_root bpfman-hook version)" = "$("$binary" version)" ] || fail "another program is installed"
  in_root dpkg -V bpfman-hook || fail "dpkg finds its files changed"
  # What install would write is there already, and the hook files are those of both engines.
  complete
  in_root bpfman-hook policy check | grep -q built-in || fail "the policy of the package is not the built-in one"
  for file in usr/share/man/man1/bpfman-hook.1.gz usr/share/bash-completion/completions/bpfman-hook usr/share/zsh/vendor-completions/_bpfman-hook \
    usr/share/fish/vendor_completions.d/bpfman-hook.fish usr/share/doc/bpfman-hook/docs/policy.md usr/lib/sysusers.d/bpfman-hook.conf \
    usr/lib/tmpfiles.d/bpfman-hook.conf 'usr/lib/systemd/system/run-bpfman\x2dhook-fs.mount' usr/lib/systemd/system/bpfman-hook.socket; do
    [ -s "$root/$file" ] || fail "/$file is missing"
  done
  [ "$(ls -A "$root/etc/bpfman-hook/keys" 2>&1)" = '' ] || fail "the directory of keys is not there, or not empty"
  # A program of another version does not replace the package's.
  cp "$binary" "$root/usr/local/bin/other" && printf x >>"$root/usr/local/bin/other"
  ! in_root other install --podman >"$place/said" 2>&1 || fail "install replaces the package's program"
  grep -q 'the package bpfman-hook is installed here' "$place/said" || fail "$(cat "$place/said")"
  rm "$root/usr/local/bin/other"
  # The administrator's file stays with a removal, and goes with a purge; keys stay.
  echo '# mine' >>"$root/etc/bpfman-hook/policy.toml"
  touch "$root/etc/bpfman-hook/keys/mine.pub"
  in_root dpkg -r bpfman-hook >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  grep -q mine "$root/etc/bpfman-hook/policy.toml" || fail "the removal takes the administrator's policy"
  in_root dpkg -P bpfman-hook >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  grep -q '/etc/bpfman-hook stays' "$place/said" || fail "purge says nothing of keys: $(cat "$place/said")"
  rm -r "$root/etc/bpfman-hook"
  same "after a purge" "$files" "$(listing)"
}

# Starts the container of podman's quick start, as that page does.
container() {
  in_root sh -c 'dpkg -i ./bpfman-hook_*.deb' >/dev/null 2>&1
  engine trixie "$1"
  [ -n "$signs" ] || return 0
  typed podman 1
}
running() { in_root podman ps -q --no-trunc -f name=web; }
links() { bpftool link show | grep -c 'xdp\|cgroup' || true; }

upgrade() {
  fresh
  container upgrade
  [ -n "$signs" ] || return 0
  local had
  had=$(links)
  [ "$had" -ge 2 ] || fail "the container has no programs: $(cat "$place/typed")"
  VERSION=$version+next LIGHT=1 SBOM=no "$source/packaging/build.sh" "$binary" "$place/next" 2>/dev/null
  cp "$place"/next/*.deb "$root/root/next.deb"
  in_root dpkg -i ./next.deb >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  ! grep -q 'Next:' "$place/said" || fail "an upgrade says what a first installation says"
  [ "$(links)" = "$had" ] || fail "the upgrade took programs of a running container"
  grep -q 'localhost:5000' "$root/etc/bpfman-hook/policy.toml" || fail "the upgrade took the policy"
  typed podman 2
  [ "$(links)" = "$(echo "$before" | grep -c '^link' || true)" ] || fail "the container's end left links"
}

living() {
  fresh
  container living
  [ -n "$signs" ] || return 0
  local had
  had=$(links)
  in_root apt-get remove -y -qq bpfman-hook >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  grep -q 'stay attached' "$place/said" || fail "the removal says nothing of running containers: $(cat "$place/said")"
  [ ! -e "$root/usr/bin/bpfman-hook" ] || fail "the program is still there"
  [ "$(links)" = "$had" ] || fail "the removal took programs of a running container"
  in_root podman rm -f -t 0 web >"$place/said" 2>&1 || fail "a container cannot end after the removal: $(cat "$place/said")"
  for _ in $(seq 150); do [ -e "$root/run/bpfman-hook" ] || break; sleep 0.1; done
  [ ! -e "$root/run/bpfman-hook" ] || fail "left in /run/bpfman-hook: $(find "$root/run/bpfman-hook" | head)"
  # Containers start without it.
  in_root podman run --rm --network none docker.io/library/alpine sleep 0 || fail "a container does not start after the removal"
}

rpm() {
  fresh
  local files
  # Debian's own rpm: the database is its own, and podman is not in it.
  in_root rpm --initdb
  files=$(listing)
  in_root rpm -i --nodeps "./bpfman-hook-$version-1.$(uname -m).rpm" >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  grep -q 'Next:' "$place/said" || fail "%post says nothing: $(cat "$place/said")"
  in_root rpm -V --nodeps bpfman-hook || fail "rpm finds its files changed"
  in_root rpm -q --configfiles bpfman-hook | grep -qx /etc/bpfman-hook/policy.toml || fail "the policy is not a configuration file"
  complete
  VERSION=$version.1 LIGHT=1 SBOM=no "$source/packaging/build.sh" "$binary" "$place/next" 2>/dev/null
  cp "$place/next/"*".1-1.$(uname -m).rpm" "$root/root/next.rpm"
  in_root rpm -U --nodeps ./next.rpm >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  ! grep -q 'Next:' "$place/said" || fail "an upgrade says what a first installation says"
  [ -e "$root/etc/containers/containers.conf.d/50-bpfman-hook.conf" ] || fail "the upgrade removed podman's setting"
  in_root rpm -e --nodeps bpfman-hook >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  same "after rpm -e" "$files" "$(listing)"
}

first-hour() {
  fresh
  engine trixie first-hour
  [ -n "$signs" ] || return 0
  typed podman 1
  grep -q "$(running | cut -c -12).*xdp" <(tr '\n' ' ' <"$place/typed") || fail "list containers does not show the container: $(cat "$place/typed")"
  [ "$(links)" -ge 2 ] || fail "no links"
  # The programs count: the map of the container's programs, before and after traffic.
  sum() { bpftool -j map dump name packets | jq '[.[].formatted.value // 0] | add'; }
  local quiet
  quiet=$(sum)
  in_root podman exec web busybox nc -w 1 10.88.0.1 9 </dev/null >/dev/null 2>&1 || true # to a closed port: a SYN out, an RST in
  [ "$(sum)" -gt "$quiet" ] || fail "the programs count nothing: $quiet, $(sum)"
  typed runc 1
  grep -q '^count ' "$place/typed" || fail "list containers does not show runc's container: $(cat "$place/typed")"
  typed runc 2
  ! grep -q '^count ' "$place/typed" || fail "runc's container is still there: $(cat "$place/typed")"
  typed podman 2
  grep -q acquired "$place/typed" || fail "no events: $(cat "$place/typed")"
  typed podman 3
  for left in usr/bin/bpfman-hook run/bpfman-hook var/cache/bpfman-hook; do [ ! -e "$root/$left" ] || fail "purge leaves /$left"; done
}

probe() {
  fresh
  in_root sh -c 'dpkg -i ./bpfman-hook_*.deb' >/dev/null 2>&1
  block probe 1 | (cd "$root/root" && bash -e) || fail "docs/quickstart/probe.md does not compile"
  typed probe 2
  grep -q '"value": *[1-9]' "$place/typed" || grep -q 'value:* *0[1-9a-f]' "$place/typed" || fail "the probe counts nothing: $(cat "$place/typed")"
}

image() {
  fresh
  in_root sh -c 'dpkg -i ./bpfman-hook_*.deb' >/dev/null 2>&1
  engine sid image
  [ -n "$signs" ] || return 0
  cp "$source/tests/bpf/demo.bpf.o" "$root/root/probe.o"
  typed image 1
}

# A docker that passes annotations is one of a newer Debian; its root has no package manager.
docker() {
  local clean=$docker_root
  [ -n "$clean" ] || { skipped "docker: none of Debian trixie"; return 0; }
  fresh
  dpkg-deb -x "$place"/made/*.deb "$root"
  engine trixie docker
  [ -n "$signs" ] || return 0
  # What the page refers to: a policy, and an image that it allows.
  block podman 1 | sed -n '2,5p' | in_root bash -e >"$place/said" 2>&1 || fail "$(cat "$place/said")"
  typed docker 1
  in_root dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs --exec-opt native.cgroupdriver=cgroupfs \
    --cgroup-parent /bpfman-hook-test >"$place/dockerd" 2>&1 9>&- &
  for _ in $(seq 300); do in_root docker version >/dev/null 2>&1 && break; sleep 0.2; done
  tar -C "$place/image" --owner=0 --group=0 -c . | in_root docker import - alpine >"$place/said" 2>&1 || fail "$(cat "$place/said" "$place/dockerd")"
  typed docker 2
  [ "$(grep -c 'xdp count_packets\|cgroup_skb count_egress' "$place/typed")" = 2 ] || fail "docker's container has no programs: $(cat "$place/typed")"
  [ -z "$(in_root bpfman-hook list containers -q)" ] || fail "the end of docker's container left something"
}

kubernetes() {
  fresh
  cp "$place"/made/*.tar.gz "$root/root/"
  typed kubernetes 1
  in_root sh -c 'podman run --rm --network none registry.example/bpfman-hook:0.1.0 version' | grep -qx "$("$binary" version)" || fail "the container image does not run"
}

crio() {
  fresh
  cp "$source/tests/data/signatures/keys/cosign-v3.pub" "$root/root/cosign.pub"
  typed crio 1
}

for case; do
  [ "$case" = release ] || step "$case"
  [ "$case" = release ] || "$case"
  passed=$((passed + 1))
  for _ in $(seq 50); do left=$(objects | comm -13 <(echo "$before") -); [ -n "$left" ] || break; sleep 0.1; done
  [ -z "$left" ] || fail "$case leaves $left"
done
echo "packages: $passed passed, 0 failed"
