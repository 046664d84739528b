#!/bin/bash
# suite.sh SUITE PACKAGE...   unpacks packages of another Debian suite (trixie, sid) into a directory of their own and prints it.
#
# Nothing is installed: apt runs with lists, sources and cache below the cache directory, packages are verified with Debian's
# archive keyring, and dependencies are not followed, so this is for programs that need libc alone. A package that is there
# already costs nothing; SUITE_REFRESH=1 fetches again.
#
# Exit status: 0, the last line of standard output is the directory; 77, it cannot be had here and the line says why; 2, usage.
set -u
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

missing=()
for package; do
  [ -z "${SUITE_REFRESH:-}" ] && [ -d "$cache/$package" ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
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
  apt-get "${options[@]}" update >&2 || skip "its package lists cannot be fetched"
  for package in "${missing[@]}"; do
    rm -rf "$cache/debs" "$cache/$package.new"
    mkdir -p "$cache/debs"
    (cd "$cache/debs" && apt-get "${options[@]}" download "$package" >&2) || skip "the package $package cannot be fetched"
    dpkg-deb -x "$cache"/debs/*.deb "$cache/$package.new" >&2 || skip "the package $package cannot be unpacked"
    rm -rf "${cache:?}/$package"
    mv "$cache/$package.new" "$cache/$package"
  done
  rm -rf "$cache/debs"
fi
echo "$cache"
