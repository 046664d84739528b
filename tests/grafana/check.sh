#!/bin/bash
# check.sh   reads the dashboard with Grafana's own types of it (grafana-foundation-sdk): each field must be one that they know.
#
# Grafana itself is in no archive that this machine has: the picture was not looked at. Where the types cannot be had, this says so
# and succeeds.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
sdk='grafana-foundation-sdk==1769699998!10.1.0'
venv=${BPFMAN_HOOK_TEST_CACHE:-/var/cache/bpfman-hook-tests}/venv-grafana

skip() {
  echo "SKIPPED: the dashboard: $*"
  exit 0
}
if [ ! -f "$venv/$sdk" ]; then
  python3 -c 'import venv, ensurepip' 2>/dev/null || skip "python3-venv is missing"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" -q --disable-pip-version-check install "$sdk" || { rm -rf "$venv"; skip "$sdk cannot be fetched"; }
  touch "$venv/$sdk"
fi
"$venv/bin/python" "$(dirname "$0")/check.py" "$root/packaging/grafana/bpfman-hook.json"
