#!/bin/bash
# packages.sh [SUITE]   makes a root file system with docker of a Debian suite (trixie: 26.1, sid: 28), and prints it. Nothing is
# installed; tests/support/docker.rs and tests/packages/suite.sh run dockerd in it, in namespaces of its own.
#
# Exit status: 77, with the reason, where the packages cannot be had here; any other but 0 is a failure.
set -eu
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# jq and what is in a Debian system anyway: for the wrapper of runc in docs/quickstart/docker.md.
said=$("$here/../suite.sh" --tree docker "${1:-trixie}" docker.io docker-cli runc jq bash coreutils grep sed util-linux mount procps \
  iptables) || {
  status=$?
  printf '%s\n' "$said"
  exit "$status"
}
printf '%s\n' "${said##*$'\n'}"
