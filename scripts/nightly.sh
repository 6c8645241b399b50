#!/usr/bin/env bash
# What is longer than the gate: every preset's build, every suite but a few under every sanitizer,
# the suite of Gemma 3 270M, ten minutes of each fuzzer, the long simulations, sixty faults of a
# fleet, ten minutes of soak, plain and sanitized. Goes on after a failure; its result and date go
# to docs/nightly.md.
#   scripts/nightly.sh [--fuzz-seconds N]
set -uo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/steps.sh"

fuzz_seconds=600
case ${1:-} in
  '') ;;
  --fuzz-seconds) fuzz_seconds=${2:?how many} ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0"; [[ $1 == --help ]] && exit 0 || exit 2 ;;
esac

rows=()
failures=0
# part NAME COMMAND...: a step that is noted down, whatever comes of it.
part() {
  local name=$1 began=$SECONDS result=ok
  shift
  (step "$name" "see docs/nightly.md for the step, its log for the output" "$@") || {
    result=FAILED
    failures=$((failures + 1))
  }
  rows+=("| $name | $result | $((SECONDS - began)) s |")
}

# fuzz_all NAME...: as many at a time as there are processors, noted down in this order.
fuzz_all() {
  local name row
  for name in "$@"; do
    while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
    (
      part "fuzz $name" run_fuzzer "$name" "$fuzz_seconds"
      printf '%s' "${rows[-1]}" >"$logs/fuzz-$name.row"
    ) &
  done
  wait
  for name in "$@"; do
    row=$(<"$logs/fuzz-$name.row")
    rows+=("$row")
    [[ $row != *'| FAILED |'* ]] || failures=$((failures + 1))
  done
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
if ((${#names[@]})); then
  part "build fuzz" build_preset fuzz "${names[@]/#/fuzz_}"
  fuzz_all "${names[@]}"
fi
part "long simulation" scripts/simulate.sh 10000
part "long simulation of fleets" scripts/simulate.sh 10000 --fleets
part "faults" scripts/faults.sh --rounds 60
# soak PRESET: ten minutes of everything that clients do.
soak() {
  "build/$1/sluice-soak" --seconds 600 --model "$(scripts/fetch-model.sh --path)"
}
part "soak release" soak release
ASAN_OPTIONS=detect_leaks=1 part "soak asan-ubsan" soak asan-ubsan

mkdir -p docs
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
