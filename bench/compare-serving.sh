#!/usr/bin/env bash
# 32 streams on a node against one stream, and against llama.cpp on the same file, machine, prompts
# and lengths, a thread a core. Both keep their own default KV type. Figures need a quiet machine.
#   bench/compare-serving.sh            variables: streams=32 tokens=64
# Needs scripts/setup.sh, a release build and PyPI's llama-cpp-python, which it installs into
# build/peer-venv unless python=PATH names a Python that has it.
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/../scripts/steps.sh"
[[ ${1:-} == --help ]] && { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0; }

streams=${streams:-32} tokens=${tokens:-64} threads=$(nproc)
model=$(scripts/fetch-model.sh --path)
out=$root/build/compare-serving
mkdir -p "$out"

peer_python() {
  [[ -x build/peer-venv/bin/python ]] || /usr/bin/python3 -m venv build/peer-venv
  build/peer-venv/bin/python -m pip install --quiet --disable-pip-version-check \
    llama-cpp-python==0.3.36 numpy==2.2.6
}
if [[ -z ${python:-} ]]; then
  step "install llama-cpp-python" "check that PyPI can be reached, or set python=PATH" peer_python
  python=build/peer-venv/bin/python
fi

for ((i = 0; i < streams; ++i)); do
  echo "Story $i. Once upon a time, in a town by the sea, there lived $((i * 7 + 3)) people who"
done >"$out/prompts.txt"

# serve CONCURRENCY ENDPOINT: prints output tokens a second.
serve() {
  build/release/sluice bench serve --connect "$2" --dataset-path "$out/prompts.txt" \
    --num-prompts "$1" --num-warmups 1 --output-len "$tokens" --ignore-eos --json |
    tee "$out/sluice-$1.json" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["output_throughput"])'
}
ours() {
  one=$(serve 1 "$1")
  many=$(serve "$streams" "$1")
}
echo "load average before: $(cut -d' ' -f1-3 /proc/loadavg)"
with_node ours
"$python" bench/compare_serving.py --model "$model" --prompts "$out/prompts.txt" \
  --streams "$streams" --tokens "$tokens" --threads "$threads" | tee "$out/llama.cpp.jsonl"

python3 - "$one" "$many" "$streams" "$out/llama.cpp.jsonl" <<'PY'
import json
import sys
one, many, streams = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
with open(sys.argv[4], encoding="utf-8") as file:
    peer = max((json.loads(line) for line in file), key=lambda r: r["output_throughput"])
best = peer["output_throughput"]
print(f"{'sluice, 1 stream':<26}{one:8.1f} tokens/s")
print(f"{f'sluice, {streams} streams':<26}{many:8.1f} tokens/s, {many / one:.2f} times one")
print(f"{f'llama.cpp, {streams} streams':<26}{best:8.1f} tokens/s ({peer['setting']})")
print(f"{'sluice / llama.cpp':<26}{many / best:8.2f}")
PY
