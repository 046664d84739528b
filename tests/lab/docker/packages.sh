#!/bin/bash
# packages.sh [SUITE]   makes a root file system with docker of a Debian suite (trixie: 26.1, sid: 28), and prints it. Nothing is
# installed; tests/support/docker.rs runs dockerd in it, in namespaces of its own.
#
# Exit status: 77, with the reason, where the packages cannot be had here; any other but 0 is a failure.
set -eu
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# python3 for the wrapper of runc in docs/operations.md.
said=$("$here/../suite.sh" --tree docker "${1:-trixie}" docker.io docker-cli python3) || {
  status=$?
  printf '%s\n' "$said"
  exit "$status"
}
printf '%s\n' "${said##*$'\n'}"
