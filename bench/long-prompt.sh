#!/usr/bin/env bash
# What one long prompt does to streams that decode: their inter-token latency with and without it,
# and its own time to first token beside them and on an idle node. Figures need a quiet machine.
#   bench/long-prompt.sh            variables: streams=8 prompt=4096 rounds=3 tokens=2048
# Needs scripts/setup.sh and a release build.
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/../scripts/steps.sh"
[[ ${1:-} == --help ]] && { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0; }

streams=${streams:-8} prompt=${prompt:-4096} rounds=${rounds:-3} tokens=${tokens:-2048}
out=$root/build/long-prompt
mkdir -p "$out"

# Each run has its own seed, so that no prompt is found in the cache.
seed=0
serve() {
  build/release/sluice bench serve --connect "$1" --seed $((++seed)) --num-warmups 0 --json "${@:2}"
}
decode() { serve "$1" --num-prompts "$streams" --random-input-len 16 --random-output-len "$2"; }
read_prompt() { serve "$1" --num-prompts 1 --random-input-len "$prompt" --random-output-len 2; }

measure() {
  decode "$1" 32 >"$out/warm-up.json"
  for ((round = 0; round < rounds; ++round)); do
    read_prompt "$1" >"$out/idle-$round.json"
    decode "$1" "$tokens" >"$out/alone-$round.json"
    decode "$1" "$tokens" >"$out/beside-$round.json" &
    load=$!
    sleep 1
    seed=$((seed + 1000))
    read_prompt "$1" >"$out/busy-$round.json"
    if ! kill -0 "$load" 2>/dev/null; then
      echo "the streams ended before the prompt was through: give them more than tokens=$tokens" >&2
      return 1
    fi
    wait "$load"
  done
}
echo "load average before: $(cut -d' ' -f1-3 /proc/loadavg)"
with_node measure

python3 - "$out" "$rounds" <<'PY'
import json
import statistics
import sys

def median(run, key):
    values = []
    for round_ in range(int(sys.argv[2])):
        with open(f"{sys.argv[1]}/{run}-{round_}.json", encoding="utf-8") as file:
            values.append(json.load(file)[key])
    return statistics.median(values)

alone, beside = median("alone", "p99_itl_ms"), median("beside", "p99_itl_ms")
idle, busy = median("idle", "mean_ttft_ms"), median("busy", "mean_ttft_ms")
print("the streams' p99 ITL", f"{alone:.1f} ms alone, {beside:.1f} ms with the prompt,",
      f"ratio {beside / alone:.2f}")
print("the prompt's TTFT", f"{idle:.0f} ms alone, {busy:.0f} ms beside them,",
      f"ratio {busy / idle:.2f}")
PY
