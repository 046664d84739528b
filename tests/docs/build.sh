#!/bin/bash
# build.sh OUT   builds the documents as a site with mdBook, and checks its links.
#
# mdBook comes from another Debian suite. Exit status 77, with the reason: it cannot be had here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(readlink -f "$here/../..")
[ $# = 1 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$1"
out=$(readlink -e "$1")
status=0
answer=$("$source/tests/lab/suite.sh" --tree mdbook sid mdbook) || status=$?
tree=${answer##*$'\n'}
[ $status = 0 ] || { echo "$tree"; exit $status; }
work=$tree/tmp/book-$$
trap 'rm -rf "$work"' EXIT
mkdir "$work"
# The layout is the repository's, so that links between documents, and to the files that they speak of, are the same.
mkdir "$work/src"
(cd "$source" && tar -c --exclude=__pycache__ ./*.md LICENSE docs nri hooks.d packaging benches tests/bpf tests/setup.sh) | tar -x -C "$work/src"
sed 's|](\.\./|](|; t; s|](|](docs/|' "$source/docs/SUMMARY.md" >"$work/src/SUMMARY.md"
rm "$work/src/docs/SUMMARY.md"
# mdBook makes index.html of a README.md, but does not change links to it.
find "$work/src" -name '*.md' ! -name SUMMARY.md -exec sed -i -E 's/(\]\([^)]*)README\.md/\1index.md/g' {} +
cp "$source/book.toml" "$work"
# It reads its icons from its own system.
chroot "$tree" mdbook build --dest-dir "/tmp/book-$$/book" "/tmp/book-$$" >"$work/said" 2>&1 || { status=$?; cat "$work/said" >&2; exit $status; }
! grep -i 'warn\|error' "$work/said" || exit 1
# Debian's mdBook has no fonts, but its pages ask for them.
mkdir -p "$work/book/fonts"
echo '/* The fonts are those of the reader. */' >"$work/book/fonts/fonts.css"
python3 "$here/links.py" "$work/book"
find "$out" -mindepth 1 -delete
cp -r "$work/book/." "$out"
