#!/bin/sh
# check.sh   compiles what packaging/ has for security modules: the AppArmor profile, the SELinux module, and the module of another
# domain that the SELinux README shows.
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

# -Q: nothing is loaded, so that any kernel will do. Warnings are about this machine; what does not parse has a status of its own.
apparmor_parser -QK -W -o "$made/profile" "$root/packaging/apparmor/bpfman-hook-container" 2>"$made/said" || { cat "$made/said" >&2; exit 1; }
[ -s "$made/profile" ] || { echo "apparmor_parser made nothing" >&2; exit 1; }

module() { # NAME: compiles $made/NAME.te into a package
	checkmodule -M -m -o "$made/$1.mod" "$made/$1.te" >/dev/null
	semodule_package -o "$made/$1.pp" -m "$made/$1.mod"
	[ -s "$made/$1.pp" ] || { echo "$1: semodule_package made nothing" >&2; exit 1; }
}
cp "$root/packaging/selinux/bpfman-hook.te" "$made/"
module bpfman-hook
sed -n '/^    module local-bpf /,/^$/s/^    //p' "$root/packaging/selinux/README.md" >"$made/local-bpf.te"
sed -n '/^    typeattribute/s/^    //p' "$root/packaging/selinux/README.md" >>"$made/local-bpf.te"
module local-bpf
