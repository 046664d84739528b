#!/bin/bash
# tool.sh SUITE PACKAGE ARGUMENT...   runs a package's program with the C library of its Debian suite (trixie, sid).
#
# Exit status: the program's; 77, it cannot be had here and standard error says why; 2, usage.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
suite=$1 package=$2
shift 2
status=0
answer=$("$(dirname "$0")/suite.sh" "$suite" "$package" libc6 libgcc-s1) || status=$?
directory=${answer##*$'\n'}
[ $status = 0 ] || { echo "$directory" >&2; exit $status; }
libraries=usr/lib/$(uname -m)-linux-gnu
loader=$(echo "$directory/libc6/$libraries"/ld-linux-*.so.*)
exec "$loader" --library-path "$directory/libc6/$libraries:$directory/libgcc-s1/$libraries" "$directory/$package/usr/bin/$package" "$@"
