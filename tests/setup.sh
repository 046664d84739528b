#!/bin/sh -e
# setup.sh [PACKAGE...]   installs what the tests and checks need and this machine lacks; without arguments, all of it.

[ $# -gt 0 ] || set -- gcc libc6-dev git runc crun podman conmon uidmap busybox-static bpftool iproute2 openssl strace util-linux \
    clang llvm libbpf-dev xdp-tools shellcheck python3 python3-grpcio python3-venv systemd binutils docker-registry skopeo containernetworking-plugins \
    apparmor checkpolicy semodule-utils rpm mmdebstrap jq zsh fish

missing=
for package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "these packages are missing:$missing; run this as root, or install them" >&2; exit 1; }
echo "installing:$missing"
apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
