#!/bin/bash
# trees.sh NAME   makes the root file system of some clients, of Debian's packages, and prints it: bookworm, sid, bookworm-go, sid-go.
#
# Exit status 77, with the reason, where the packages cannot be had.
set -eu
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
tools="bash coreutils grep sed"
go="golang-go golang-github-cilium-ebpf-dev"
case ${1-} in
bookworm) packages="$tools bpftool xdp-tools iproute2 libbpf-dev" ;;
sid) packages="$tools bpftool xdp-tools nginx dnsdist bpfilter veristat iproute2 libbpf-dev" ;;
sid-go | bookworm-go) packages="$tools $go" ;;
*) sed -n '2s/^# //p' "$0" >&2; exit 2 ;;
esac
# shellcheck disable=SC2086 # lists of package names
said=$("$here/../lab/suite.sh" --tree "$1" "${1%-go}" $packages) || { status=$?; printf '%s\n' "$said"; exit "$status"; }
printf '%s\n' "${said##*$'\n'}"
