#!/usr/bin/env bash
# Time to first token of a request that shares its first 2,000 tokens with an earlier one, beside
# the earlier one's.
#   bench/prefix-cache.sh            variables: rounds=3
# Needs scripts/setup.sh and a release build.
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/../scripts/steps.sh"
[[ ${1:-} == --help ]] && { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0; }

rounds=${rounds:-3}
out=$root/build/prefix-cache
mkdir -p "$out"

# ask ENDPOINT FILE: prints the answer's JSON.
ask() {
  build/release/sluice complete --connect "$1" --file "$2" --max-tokens 1 --temperature 0 --json
}
measure() {
  for ((round = 0; round < rounds; ++round)); do
    python3 - "$out" "$round" <<'PY'
import random
import sys

# About 2,000 tokens that no other round has, then two questions.
vocabulary = "the river ran past old houses and new mills".split()
words = random.Random(int(sys.argv[2])).choices(vocabulary, k=1950)
for name, question in (("first", "What is it about?"), ("second", "Who lives there, and why?")):
    with open(f"{sys.argv[1]}/{name}.txt", "w", encoding="utf-8") as file:
        file.write(f"Round {sys.argv[2]}. " + " ".join(words) + ". " + question)
PY
    ask "$1" "$out/first.txt" >"$out/first-$round.json"
    ask "$1" "$out/second.txt" >"$out/second-$round.json"
  done
}
with_node measure

python3 - "$out" "$rounds" <<'PY'
import json
import statistics
import sys

runs = {}
for name in ("first", "second"):
    runs[name] = []
    for round_ in range(int(sys.argv[2])):
        with open(f"{sys.argv[1]}/{name}-{round_}.json", encoding="utf-8") as file:
            runs[name].append(json.load(file))
first, second = (statistics.median(run["timing"]["ttft_ms"] for run in runs[name])
                 for name in ("first", "second"))
usage = runs["second"][0]["usage"]
print(f"TTFT {first:.0f} ms, then {second:.1f} ms with {usage['cached_tokens']} of "
      f"{usage['prompt_tokens']} tokens cached: {100 * second / first:.1f} %")
PY
