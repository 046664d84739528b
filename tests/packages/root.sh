#!/bin/bash
# root.sh   makes a clean Debian 12 with podman and runc and without a compiler, and prints its directory.
#
# Callers copy it. One that is there already costs nothing; ROOT_REFRESH=1 makes it again. Exit status 77, with the reason: it cannot
# be had here.
set -euo pipefail
packages=mount,podman,runc,containernetworking-plugins,iptables,bpftool,jq,rpm,iproute2,iputils-ping,procps,ca-certificates
made=${BPFMAN_HOOK_TEST_CACHE:-/var/cache/bpfman-hook-tests}/root
skip() {
  echo "a clean Debian: $*"
  exit 77
}
[ "$(id -u)" = 0 ] || skip "root is needed"
mkdir -p "$(dirname "$made")"
exec 9>"$made.lock"
flock 9
if [ -n "${ROOT_REFRESH:-}" ] || [ "$(cat "$made.packages" 2>/dev/null)" != "$packages" ]; then
  "$(dirname "$0")/../setup.sh" mmdebstrap >&2 || skip "mmdebstrap cannot be installed"
  rm -rf "$made" "$made.packages"
  # Where the machine's own Debian comes from.
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null | grep -v security | sort -u | head -n 1)
  [ -n "$mirror" ] || skip "apt has no source of Debian: run apt-get update"
  mmdebstrap --quiet --variant=apt --include="$packages" bookworm "$made" "deb $mirror bookworm main" >&2 || {
    rm -rf "$made"
    skip "its packages cannot be fetched"
  }
  echo "$packages" >"$made.packages"
fi
echo "$made"
