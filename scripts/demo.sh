#!/usr/bin/env bash
# From nothing to a streamed completion: installs what is missing, builds, fetches a model, starts a
# node on loopback, streams one completion from it, shows its receipt, stops the node cleanly.
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/steps.sh"

prompt=${1:-The capital of France is}

step setup "the message above names what is missing" scripts/setup.sh
step model "the message above names what could not be fetched" scripts/fetch-model.sh
step build "if the compiler was killed, run: cmake --build build/release -j1" \
  build_preset release sluice

complete_and_ask() {
  local endpoint=$1
  printf '\nnode     %s\nprompt   %s\nanswer   %s' "$endpoint" "$prompt" "$prompt"
  build/release/sluice complete --connect "$endpoint" --prompt "$prompt" --max-tokens 32 \
    --temperature 0 --receipt
  printf 'health   '
  build/release/sluice health --connect "$endpoint"
}

if ! with_node complete_and_ask; then
  echo "step:    completion through a node" >&2
  echo "remedy:  read the message above; build/log/node.log holds what the node said" >&2
  exit 1
fi
echo "node     stopped cleanly"
