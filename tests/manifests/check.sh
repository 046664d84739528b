#!/bin/bash
# check.sh BINARY   renders nri/ with kustomize, validates it against Kubernetes' schemas, and compares it with the program.
#
# kustomize comes from another Debian suite and the schemas from PyPI, both unpacked beside the system. Where they cannot be
# had, this says so and succeeds; everything else that goes wrong fails.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=$(readlink -f "$1")
cache=${BPFMAN_HOOK_TEST_CACHE:-/var/cache/bpfman-hook-tests}
validate=kubernetes-validate==1.37.0

skip() {
  echo "SKIPPED: Kubernetes manifests: $*"
  exit 0
}

status=0
suite=$("$root/tests/lab/suite.sh" sid kustomize | tail -n 1) || status=$?
[ $status != 77 ] || skip "$suite"
[ $status = 0 ] || exit $status

venv=$cache/venv-kubernetes
if [ ! -f "$venv/$validate" ]; then
  python3 -c 'import venv, ensurepip' 2>/dev/null || skip "python3-venv is missing"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" -q --disable-pip-version-check install "$validate" || { rm -rf "$venv"; skip "$validate cannot be fetched"; }
  touch "$venv/$validate"
fi

rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
kustomize=$suite/kustomize/usr/bin/kustomize
cp -r "$root/nri" "$rendered/nri"
# The quick start asks for a key, and does not render without one.
if "$kustomize" build "$rendered/nri/quickstart" >/dev/null 2>"$rendered/refused" || ! grep -q signer.pub "$rendered/refused"; then
  echo "manifests: quickstart renders without a key, or says something else: $(cat "$rendered/refused")" >&2
  exit 1
fi
cp "$root/tests/data/signatures/keys/cosign-v3.pub" "$rendered/nri/quickstart/signer.pub"
for overlay in "$rendered"/nri/*/kustomization.yaml; do
  name=$(basename "$(dirname "$overlay")")
  "$kustomize" build "$rendered/nri/$name" >"$rendered/$name.yaml"
done
# Policy and key of the quick start are what the installer takes.
mkdir "$rendered/given" "$rendered/node"
cp "$rendered/nri/quickstart/policy.toml" "$rendered/nri/quickstart/signer.pub" "$rendered/given"
"$binary" install --containerd --destdir "$rendered/node" --policy "$rendered/given" --no-docs >/dev/null
test -x "$rendered/node/opt/nri/plugins/10-bpfman-hook" -a ! -e "$rendered/node/usr/local/share/man"
"$binary" uninstall --destdir "$rendered/node" >/dev/null
left=$(find "$rendered/node" -type f ! -path '*/keys/*')
[ -z "$left" ] || { echo "manifests: uninstall leaves $left" >&2; exit 1; }
"$venv/bin/python" "$here/check.py" "$binary" "$root" "$rendered"/*.yaml
