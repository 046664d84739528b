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
for overlay in "$root"/nri/*/kustomization.yaml; do
  name=$(basename "$(dirname "$overlay")")
  "$suite/kustomize/usr/bin/kustomize" build "$root/nri/$name" >"$rendered/$name.yaml"
done
"$venv/bin/python" "$here/check.py" "$binary" "$root" "$rendered"/*.yaml
