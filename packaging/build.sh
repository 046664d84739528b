#!/bin/bash
# build.sh BINARY OUT   packs a built bpfman-hook: deb, rpm, tarball, SBOM, and SHA256SUMS of them.
#
# The environment may name:
#   ARCH               x86_64 (the default, or this machine's) or aarch64: what BINARY is for
#   WRITER             a bpfman-hook that runs on this machine and writes the other files, if BINARY does not
#   VERSION            Cargo.toml's by default
#   SOURCE_DATE_EPOCH  the time of all files; the last commit's by default
#   LIGHT              not empty: compressed little, for tests
#   SBOM               no: without one, for tests
#   COSIGN_KEY         what `cosign sign-blob --key` takes; SHA256SUMS.sig and SHA256SUMS.pub are made with it
#   MAINTAINER         name and address in the packages
# The same input gives the same bytes. dpkg-deb, rpmbuild and Debian's cosign and cargo-cyclonedx make what they are made for.
set -euo pipefail
[ $# = 2 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
source=$(dirname "$here")
binary=$(readlink -e "$1")
mkdir -p "$2"
out=$(readlink -e "$2")
arch=${ARCH:-$(uname -m)}
writer=$(readlink -e "${WRITER:-$binary}")
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' "$source/Cargo.toml" | head -n 1)}
maintainer=${MAINTAINER:-"The bpfman-hook maintainers <maintainers@bpfman-hook.invalid>"}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$source" log -1 --format=%ct)}
export LC_ALL=C TZ=UTC
umask 022
case $arch in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) echo "packaging/build.sh: no packages are made for $arch" >&2; exit 2 ;;
esac
# What a tag releases, the changelog describes.
if git -C "$source" describe --exact-match --tags HEAD 2>/dev/null | grep -qx "v$version"; then
    grep -qF "## [$version]" "$source/CHANGELOG.md" || { echo "CHANGELOG.md has no section [$version], which the tag releases" >&2; exit 1; }
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
scripts=$here/package
level=9 payload=w6.xzdio deb_options=(-Zxz -z6)
if [ -n "${LIGHT:-}" ]; then level=1 payload=w1.gzdio deb_options=(-Zgzip -z1); fi
fill() { sed -e "s|@VERSION@|$version|" -e "s|@ARCHITECTURE@|$architecture|" -e "s|@MAINTAINER@|$maintainer|" -e "s|@SIZE@|${size:-0}|" -e "s|@SCRIPTS@|$scripts|" -e "s|@LIST@|$work/list|" -e "s|@TREE@|$tree|" "$1"; }
# Reproducible: no name, no time but the one given, a fixed order.
pack() { tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --format=gnu -C "$1" -c "$2" | gzip -n "-$level" >"$3"; }

# --- What the packages have in common: the files that `install` writes, and documents ---------------------------------------
tree=$work/tree
"$writer" install --podman --crio --service --proxy --guard --nri --metrics --prefix /usr --destdir "$tree" >/dev/null
# What depends on the host is written there, by after-install.
rm -r "${tree:?}/etc"
install -m 0755 "$binary" "$tree/usr/bin/bpfman-hook"
find "$tree/usr/share/man" -type f -exec gzip -9n {} +
documents=$tree/usr/share/doc/bpfman-hook
install -d -m 0755 "$documents/docs" "$documents/examples" "$tree/etc/bpfman-hook/keys" "$tree/usr/libexec/bpfman-hook" "$tree/usr/share/bpfman-hook" \
    "$tree/etc/containers/containers.conf.d"
cp "$source"/{README,CHANGELOG,SECURITY,CONTRIBUTING}.md "$documents"
cp -r "$source/docs/." "$documents/docs"
cp -r "$source/nri" "$documents/examples/nri"
cp -r "$here/apparmor" "$here/grafana" "$here/prometheus" "$here/selinux" "$documents/examples"
cp "$source/tests/bpf/demo.bpf.c" "$documents/examples/count.bpf.c"
cp "$source/tests/bpf/demo.bpf.o" "$documents/examples/count.bpf.o"
printf 'bpfman-hook, licensed under the Apache License, Version 2.0; on Debian, /usr/share/common-licenses/Apache-2.0.\n\n' >"$documents/copyright"
cat "$source/LICENSE" >>"$documents/copyright"
install -m 0755 "$scripts/release-later" "$tree/usr/libexec/bpfman-hook/release-later"
install -m 0644 "$scripts/policy.toml" "$tree/etc/bpfman-hook/policy.toml"
find "$documents" -type d -exec chmod 0755 {} + -o -type f -exec chmod 0644 {} +
# list TREE: writes the list by which `install` knows the package's files.
list() {
    (cd "$1" && { find . -type f | sed 's|^\.||'; echo /usr/share/bpfman-hook/package-files; } | sort) >"$work/package-files"
    install -m 0644 "$work/package-files" "$1/usr/share/bpfman-hook/package-files"
    find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# --- deb --------------------------------------------------------------------------------------------------------------------
deb=$work/deb
cp -a "$tree" "$deb"
install -d -m 0755 "$deb/usr/share/zsh/vendor-completions" "$deb/DEBIAN"
mv "$deb/usr/share/zsh/site-functions/_bpfman-hook" "$deb/usr/share/zsh/vendor-completions/"
rmdir "$deb/usr/share/zsh/site-functions"
mv "$deb/DEBIAN" "$work/DEBIAN"
list "$deb"
size=$(du -k -s --apparent-size "$deb" | cut -f 1)
fill "$scripts/control" >"$work/DEBIAN/control"
echo /etc/bpfman-hook/policy.toml >"$work/DEBIAN/conffiles"
install -m 0755 "$scripts/after-install" "$work/DEBIAN/postinst"
install -m 0755 "$scripts/before-remove" "$work/DEBIAN/prerm"
install -m 0755 "$scripts/after-remove" "$work/DEBIAN/postrm"
(cd "$deb" && find . -type f ! -path ./etc/bpfman-hook/policy.toml | sed 's|^\./||' | sort | while IFS= read -r file; do
    # Given a name with a backslash, md5sum writes one that dpkg does not read.
    printf '%s  %s\n' "$(md5sum <"$file" | cut -d ' ' -f 1)" "$file"
done) >"$work/DEBIAN/md5sums"
mv "$work/DEBIAN" "$deb/DEBIAN"
find "$deb/DEBIAN" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group --threads-max=1 "${deb_options[@]}" --build "$deb" "$out/bpfman-hook_${version}_$architecture.deb" >/dev/null

# --- rpm --------------------------------------------------------------------------------------------------------------------
list "$tree"
{
    echo '%defattr(-,root,root,-)'
    echo '%dir /etc/containers/containers.conf.d'
    echo '%dir /etc/bpfman-hook'
    echo '%dir /etc/bpfman-hook/keys'
    echo '%config(noreplace) /etc/bpfman-hook/policy.toml'
    # Its own directories, and those of packages that it does not depend on.
    (cd "$tree" && find usr/share/doc/bpfman-hook usr/libexec/bpfman-hook usr/share/bpfman-hook usr/share/containers usr/share/fish \
        usr/share/zsh usr/lib/sysusers.d usr/lib/tmpfiles.d -type d | sed 's|^|%dir "/|; s|$|"|')
    # A backslash in a name is a pattern to rpm.
    grep -v '^/etc/' "$work/package-files" | sed 's|\\|?|g; s|^|"|; s|$|"|'
} >"$work/list"
fill "$scripts/spec" >"$work/bpfman-hook.spec"
rpmbuild -bb --quiet --target "$arch-linux" --buildroot "$work/buildroot" \
    --define "_topdir $work/rpm" --define "_rpmdir $work/rpms" --define '_buildhost localhost' --define 'debug_package %{nil}' \
    --define '__os_install_post %{nil}' --define '_build_id_links none' --define '_dbpath %{_topdir}/db' \
    --define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' \
    --define "_binary_payload $payload" "$work/bpfman-hook.spec" >/dev/null
mv "$work/rpms/$arch/bpfman-hook-$version-1.$arch.rpm" "$out"

# --- tarball: for hosts without either ----------------------------------------------------------------------------------------
name=bpfman-hook-$version-$arch-linux
mkdir "$work/$name"
install -m 0755 "$binary" "$work/$name/bpfman-hook"
cp "$source/LICENSE" "$work/$name"
cp -r "$documents/." "$work/$name"
mv "$work/$name/examples/nri" "$work/$name/"
rm "$work/$name/copyright"
pack "$work" "$name" "$out/$name.tar.gz"
made=("bpfman-hook_${version}_$architecture.deb" "bpfman-hook-$version-1.$arch.rpm" "$name.tar.gz")

# --- SBOM: what the binary is made of -----------------------------------------------------------------------------------------
if [ "${SBOM:-}" != no ]; then
    bom=sbom-$$
    trap 'rm -rf "$work" "$source/$bom.json"' EXIT
    (cd "$source" && tests/lab/tool.sh sid cargo-cyclonedx cyclonedx --quiet --format json --spec-version 1.5 \
        --target "$arch-unknown-linux-gnu" --no-build-deps --override-filename "$bom")
    # The directory of the sources is not part of it.
    sed "s|path+file://$source|path+file:///bpfman-hook|g" "$source/$bom.json" >"$out/$name.cdx.json"
    made+=("$name.cdx.json")
fi

# --- Sums and signature -------------------------------------------------------------------------------------------------------
cd "$out"
sha256sum "${made[@]}" | sort -k 2 >SHA256SUMS.new
# Packages of another architecture, built before.
[ ! -e SHA256SUMS ] || grep -vF "$(printf '  %s\n' "${made[@]}")" SHA256SUMS >>SHA256SUMS.new || true
sort -k 2 SHA256SUMS.new >SHA256SUMS
rm SHA256SUMS.new
rm -f SHA256SUMS.sig SHA256SUMS.pub
if [ -n "${COSIGN_KEY:-}" ]; then
    cosign=$(command -v cosign || echo "$("$source/tests/lab/suite.sh" trixie cosign | tail -n 1)/cosign/usr/bin/cosign")
    "$cosign" sign-blob --key "$COSIGN_KEY" --tlog-upload=false --yes --output-signature SHA256SUMS.sig SHA256SUMS 2>/dev/null
    "$cosign" public-key --key "$COSIGN_KEY" >SHA256SUMS.pub
else
    echo "packaging/build.sh: SHA256SUMS is not signed: COSIGN_KEY is not set" >&2
fi
