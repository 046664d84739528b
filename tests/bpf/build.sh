#!/bin/sh
# Rebuilds the committed objects: of the tests, in this directory, and of the program itself, in src/bpf. With --check it compares them
# with what a rebuild gives. The compiler is Debian 12's clang 14: another one gives other bytes. The paths given to clang make the
# result the same in every directory.
set -eu

cd "$(dirname "$0")/../.."
root=$PWD
CLANG=${CLANG:-clang-14}
STRIP=${LLVM_STRIP:-llvm-strip-14}
command -v "$CLANG" >/dev/null || { echo "build.sh: no $CLANG; apt-get install clang-14 llvm-14 libbpf-dev" >&2; exit 1; }

check=
case ${1-} in
'') ;;
--check)
	check=$(mktemp -d)
	trap 'rm -rf "$check"' EXIT
	;;
*)
	echo "usage: $0 [--check]" >&2
	exit 2
	;;
esac

failed=0
for directory in tests/bpf src/bpf; do
	[ -d "$root/$directory" ] || continue
	cd "$root/$directory"
	for source in *.bpf.c; do
		object=${check:-.}/${source%.c}.o
		# legacy.bpf.c stands for objects without types.
		case $source in
		legacy.bpf.c) debug= ;;
		*) debug=-g ;;
		esac
		# shellcheck disable=SC2086 # $debug is one word or none
		"$CLANG" -O2 $debug -target bpf -mcpu=v3 -Wall -Werror -I"/usr/include/$(uname -m)-linux-gnu" \
			-ffile-prefix-map="$PWD"=. -fdebug-compilation-dir=. -c "$source" -o "$object"
		"$STRIP" -g "$object"
		if [ -n "$check" ] && ! cmp "$object" "${source%.c}.o"; then
			echo "build.sh: $directory/${source%.c}.o is not what $source builds to; run tests/bpf/build.sh and commit the result" >&2
			failed=1
		fi
	done
done
exit "$failed"
