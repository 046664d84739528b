#!/bin/bash
# packages.sh   makes a directory with what tests/containerd runs, and prints it: containerd 2.1 and 1.7 below `2` and `1`, and runc and
# crun for both below `bin`, all of Debian, none of it installed.
#
# runc and crun of sid want a newer C library than this machine may have. A wrapper that calls ld.so will not do, since both run
# /proc/self/exe again, so that sid's interpreter and library path are written into them, by a patchelf that runs in the same way.
#
# Exit status: 77, with the reason, where the packages cannot be had here; any other but 0 is a failure.
set -eu
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

suite() {
  local said
  said=$("$here/../suite.sh" "$@") || { status=$?; echo "$said" >&2; exit "$status"; }
  printf '%s\n' "${said##*$'\n'}"
}

sid=$(suite sid containerd runc crun libblake3-0 libc6 libseccomp2 libstdc++6 libgcc-s1 patchelf)
trixie=$(suite trixie containerd)
made=$(dirname "$sid")/containerd
exec 9>"$sid/lock"
flock 9

# What was patched belongs to the packages that it was made of.
stamp=$(stat -c %Y:%i "$sid/runc" "$sid/crun" "$sid/libc6" "$here/packages.sh" | tr '\n' ' ')
if [ "$(cat "$made/stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$made"
  mkdir -p "$made/bin"
  libraries=$(for package in libc6 libblake3-0 libseccomp2 libstdc++6 libgcc-s1; do
    find "$sid/$package/" -name '*.so.*' -printf '%h\n'
  done | sort -u | tr '\n' ':')
  interpreter=$(find "$sid/libc6/" -name 'ld-linux*' | head -n 1)
  for program in runc crun; do
    cp "$(find "$sid/$program/" -type f -name "$program" -perm -1)" "$made/bin/$program"
    "$interpreter" --library-path "$libraries" "$(find "$sid/patchelf/" -type f -name patchelf -perm -1)" \
      --set-interpreter "$interpreter" --set-rpath "${libraries%:}" "$made/bin/$program"
    "$made/bin/$program" --version >/dev/null || { echo "$program of Debian sid does not run here" >&2; exit 77; }
  done
  ln -s "$sid/containerd/usr/bin" "$made/2"
  ln -s "$trixie/containerd/usr/bin" "$made/1"
  echo "$stamp" >"$made/stamp"
fi
echo "$made"
