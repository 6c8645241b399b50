#!/usr/bin/env bash
# Kills, stops and cuts off the nodes of a fleet, one at a time, while 20 streams run: tests/faults.
#   scripts/faults.sh                 50 rounds; ends with a table of the pauses
#   scripts/faults.sh --short         6 rounds, below 60 s, as in the gate
#   scripts/faults.sh --rounds 5 --fault SIGSTOP --keep /tmp/logs
# Each node is on a host of its own, a network namespace. Where those are not permitted it says so
# and exits 0. Needs build/release/sluice, a model, and .venv (scripts/setup.sh --tests).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

skip() {
  echo "faults: skipped: $*"
  exit 0
}
for tool in ip unshare nsenter; do
  [[ -n $(type -P "$tool") ]] || skip "$tool is not installed"
done
# Processes and networks of this script's own: all of it ends with it.
own=(unshare --net --mount --pid --fork --kill-child --mount-proc)
((EUID == 0)) || own+=(--user --map-root-user)
why=$("${own[@]}" true 2>&1) || skip "namespaces are not permitted here (${why:-unshare failed})"

"${own[@]}" .venv/bin/python tests/faults/main.py \
  --model "$(scripts/fetch-model.sh --path)" "$@" &
# unshare passes no signal on; what it started ends with it.
trap 'kill -KILL "$!" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
wait "$!"
