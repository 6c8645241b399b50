#!/usr/bin/env bash
# Runs N seeds (300) of the simulator: nodes, clients and the network between them under virtual
# time, with whatever can go wrong. The last line counts seeds, failures, simulated request-hours;
# exit code 0 only if none failed. A seed that fails is named with what repeats it.
#   scripts/simulate.sh [N] [--fleets] [--from SEED] [--verbose]
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/steps.sh"

case ${1:-} in
  -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
seeds=300
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  seeds=$1
  shift
fi
step "build simulator" "scripts/setup.sh --tests installs what is missing" \
  build_preset release test_simulate
build/release/test_simulate --seeds "$seeds" --jobs "$(nproc)" "$@"
