#!/bin/bash
# suite.sh [--tree NAME] SUITE PACKAGE[:ARCHITECTURE]...   unpacks packages of another Debian suite (trixie, sid) and prints the directory.
#
# Each package goes to a directory of its own below the one that is printed. With --tree, all of them and what they depend on
# go to one directory, a root file system in which their programs run, without the maintainers' scripts.
#
# Nothing is installed: apt runs with lists, sources and cache below the cache directory, and packages are verified with
# Debian's archive keyring. A package or tree that is there already costs nothing; SUITE_REFRESH=1 fetches again.
#
# Exit status: 0, the last line of standard output is the directory; 77, it cannot be had here and the line says why; 2, usage.
set -u
tree=
[ "${1:-}" != --tree ] || { tree=$2; shift 2; }
[ $# -ge 2 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
suite=$1
shift
cache=${BPFMAN_HOOK_TEST_CACHE:-/var/cache/bpfman-hook-tests}/$suite
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

skip() {
  echo "$suite: $*"
  exit 77
}

[ "$(id -u)" = 0 ] || skip "root is needed"
command -v apt-get >/dev/null || skip "this is not Debian"
[ -r "$keyring" ] || skip "$keyring is missing (package debian-archive-keyring)"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

# Makes apt work in the cache directory, with the suite's package lists.
prepare() {
  # Where the machine's own Debian comes from.
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null | grep -v security | sort -u | head -n 1)
  [ -n "$mirror" ] || mirror=$(grep -rhoE 'https?://[^ ]+/debian/? ' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | head -n 1)
  [ -n "$mirror" ] || skip "apt has no source of Debian: run apt-get update"
  mkdir -p "$cache"/apt/{lists,cache/archives}/partial "$cache/debs"
  printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "${mirror% }" "$suite" >"$cache/apt/sources.list"
  options=(-qq -o "Dir::Etc::SourceList=$cache/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o "Dir::State::Lists=$cache/apt/lists"
    -o "Dir::Cache=$cache/apt/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  # Packages of another architecture: PACKAGE:ARCHITECTURE.
  local architecture
  for architecture in $(printf '%s\n' "$@" | sed -n 's/.*://p' | sort -u); do
    options+=(-o "APT::Architectures::=$(dpkg --print-architecture)" -o "APT::Architectures::=$architecture")
  done
  apt-get "${options[@]}" update >&2 || skip "its package lists cannot be fetched"
}

if [ -n "$tree" ]; then
  made=$cache/tree-$tree
  if [ -n "${SUITE_REFRESH:-}" ] || [ "$(cat "$made.packages" 2>/dev/null)" != "$*" ]; then
    prepare "$@"
    rm -rf "$cache/debs" "$made" "$made.new" "$made.packages"
    mkdir -p "$cache/debs/partial" "$made.new/usr"/{bin,sbin,lib,lib64} "$made.new"/{proc,sys,dev,run,tmp,etc}
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$made.new/"
    # An empty list of installed packages, so that apt fetches all dependencies.
    : >"$cache/apt/status"
    apt-get "${options[@]}" -o "Dir::State::status=$cache/apt/status" -o "Dir::Cache::Archives=$cache/debs" \
      --download-only --no-install-recommends -y install "$@" >&2 || skip "the packages $* cannot be fetched"
    for package in "$cache"/debs/*.deb; do
      dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$made.new" || skip "$package cannot be unpacked"
    done
    chmod 1777 "$made.new/tmp" "$made.new/run"
    mv "$made.new" "$made"
    rm -rf "$cache/debs"
    echo "$*" >"$made.packages"
  fi
  echo "$made"
  exit 0
fi

missing=()
for package; do
  [ -z "${SUITE_REFRESH:-}" ] && [ -d "$cache/$package" ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
  prepare "$@"
  for package in "${missing[@]}"; do
    rm -rf "$cache/debs" "$cache/$package.new"
    mkdir -p "$cache/debs"
    # Without the machine's own packages: a newer one that is installed would be chosen instead of the suite's.
    (cd "$cache/debs" && apt-get "${options[@]}" -o Dir::State::status=/dev/null download "$package" >&2) || skip "the package $package cannot be fetched"
    dpkg-deb -x "$cache"/debs/*.deb "$cache/$package.new" >&2 || skip "the package $package cannot be unpacked"
    rm -rf "${cache:?}/$package"
    mv "$cache/$package.new" "$cache/$package"
  done
  rm -rf "$cache/debs"
fi
echo "$cache"
