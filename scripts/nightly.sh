#!/usr/bin/env bash
# What is longer than the gate: every preset's build, every suite but a few under every sanitizer,
# the suite of Gemma 3 270M, the long simulations, sixty faults of a fleet, ten minutes of each
# fuzzer and of soak, plain and sanitized. Goes on after a failure; its result and date go to
# docs/nightly.md, unless only steps whose names begin with one of these are asked for:
#   scripts/nightly.sh [--fuzz-seconds N] [STEP...]
set -uo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/steps.sh"

fuzz_seconds=600
if [[ ${1:-} == --fuzz-seconds ]]; then
  fuzz_seconds=${2:?how many}
  shift 2
fi
case ${1:-} in
  -*) sed -n '2,6s/^# \{0,1\}//p' "$0"; [[ $1 == --help ]] && exit 0 || exit 2 ;;
esac
wanted=("$@")

rows=()
failures=0

is_wanted() {
  local name
  ((${#wanted[@]})) || return 0
  for name in "${wanted[@]}"; do [[ $1 != "$name"* ]] || return 0; done
  return 1
}

# part NAME COMMAND...: a step that is noted down, whatever comes of it.
part() {
  local name=$1 began=$SECONDS result=ok
  shift
  is_wanted "$name" || return 0
  (step "$name" "see docs/nightly.md for the step, its log for the output" "$@") || {
    result=FAILED
    failures=$((failures + 1))
  }
  rows+=("| $name | $result | $((SECONDS - began)) s |")
}

# beside NAME COMMAND...: a part that takes one processor. As many of them run at a time as there
# are processors; `beside_done` waits for all, and notes them down in their order.
pending=()
row_file() { printf '%s' "$logs/${1//[^A-Za-z0-9]/-}.row"; }
beside() {
  is_wanted "$1" || return 0
  rm -f "$(row_file "$1")"
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
  pending+=("$1")
  (
    rows=()
    part "$@"
    printf '%s' "${rows[0]}" >"$(row_file "$1")"
  ) &
}
beside_done() {
  local name row
  wait
  for name in "${pending[@]}"; do
    row=$(cat "$(row_file "$name")" || echo "| $name | FAILED | killed |")
    rows+=("$row")
    [[ $row != *'| FAILED |'* ]] || failures=$((failures + 1))
  done
}

# soak PRESET: ten minutes of everything that clients do.
soak() {
  ASAN_OPTIONS=detect_leaks=1 "build/$1/sluice-soak" --seconds 600 \
    --model "$(scripts/fetch-model.sh --path)"
}

part setup scripts/setup.sh --tests
part model scripts/fetch-model.sh
part "model gemma3" scripts/fetch-model.sh gemma3-270m  # without it its suite is skipped
part "build debug" build_preset debug
for preset in release asan-ubsan; do
  part "build $preset" build_preset "$preset"
  part "test $preset" test_preset "$preset"
done
# Not those that run real models for minutes: a token takes a quarter of a second there.
part "build tsan" build_preset tsan
part "test tsan" test_preset tsan -E '^(model/(golden|gemma3)|cli/.*)$'
mapfile -t names < <(fuzzers)
part "build fuzz" build_preset fuzz "${names[@]/#/fuzz_}"
part "long simulation" scripts/simulate.sh 10000
part "long simulation of fleets" scripts/simulate.sh 10000 --fleets
part "faults" scripts/faults.sh --rounds 60
for preset in release asan-ubsan; do beside "soak $preset" soak "$preset"; done
for name in "${names[@]}"; do beside "fuzz $name" run_fuzzer "$name" "$fuzz_seconds"; done
beside_done

if ((${#wanted[@]})); then
  ((${#rows[@]})) || { echo "nightly.sh: no step's name begins so: ${wanted[*]}" >&2; exit 2; }
  printf '%s\n' "${rows[@]}"
  exit $((failures > 0))
fi
{
  echo "# Last nightly run"
  echo
  echo "Written by \`scripts/nightly.sh\` on $(date -u +%Y-%m-%d) at commit" \
    "$(git rev-parse --short HEAD),"
  echo "$(nproc) cores of $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)," \
    "fuzzers $fuzz_seconds s each, $((SECONDS / 60)) minutes in all, $failures failures."
  echo
  echo "| step | result | time |"
  echo "|---|---|---|"
  printf '%s\n' "${rows[@]}"
} >docs/nightly.md
echo "wrote docs/nightly.md: $failures failures"
exit $((failures > 0))
