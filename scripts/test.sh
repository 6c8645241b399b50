#!/usr/bin/env bash
# The gate: builds, and runs every test. One line a step; a failure shows its output and a remedy.
#   scripts/test.sh           release, asan-ubsan, tsan on actors and transport, fuzzers, faults,
#                             examples
#   scripts/test.sh --quick   the release suite and the examples
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/steps.sh"

quick=no
case ${1:-} in
  '') ;;
  --quick) quick=yes ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0"; [[ $1 == --help ]] && exit 0 || exit 2 ;;
esac

summaries=()
# suite PRESET [ctest arguments]: the tests of a preset, and ctest's closing lines for the end.
suite() {
  local preset=$1
  shift
  step "test $preset" "run the failed test alone: ctest --preset $preset -R NAME" \
    test_preset "$preset" "$@"
  summaries+=("$preset: $(grep 'tests passed' "$logs/test-$preset.log")")
}
memory="if the compiler was killed for memory, run: cmake --build build/PRESET -j1"

step setup "the message above names what is missing" scripts/setup.sh --tests
step model "the message above names what could not be fetched" scripts/fetch-model.sh
step "build release" "${memory/PRESET/release}" build_preset release
suite release
if command -v aarch64-linux-gnu-g++ >/dev/null; then
  step "NEON compiles" "run it alone: scripts/check-neon.sh" scripts/check-neon.sh
else
  printf 'not done    NEON compiles: aarch64-linux-gnu-g++ is missing (g++-aarch64-linux-gnu)\n'
fi
step bundle "run it alone: scripts/bundle.sh --check" scripts/bundle.sh --check
deploy/check.sh

if [[ $quick == no ]]; then
  step "build asan-ubsan" "${memory/PRESET/asan-ubsan}" build_preset asan-ubsan
  suite asan-ubsan
  step "build tsan" "${memory/PRESET/tsan}" build_preset tsan test_actors test_transport
  suite tsan -R '^(actors|transport)/'
  mapfile -t names < <(fuzzers)
  if ((${#names[@]})); then
    step "build fuzz" "${memory/PRESET/fuzz}" build_preset fuzz "${names[@]/#/fuzz_}"
    for name in "${names[@]}"; do
      step "fuzz $name" "replay it: build/fuzz/fuzz_$name build/log/fuzz-$name-crash-*" \
        run_fuzzer "$name" 5
    done
  fi
fi

if [[ $quick == no ]]; then
  step faults "run it alone: scripts/faults.sh --short" scripts/faults.sh --short
  tell_skipped faults
fi

# run_example FILE ENDPOINT
run_example() { .venv/bin/python "$1" --max-tokens 8 "$2" "The capital of France is"; }
for example in examples/python/*.py; do
  [[ -e $example ]] || continue
  step "example $example" "docs/protocol.md and the example must agree" \
    with_node run_example "$example"
done
for example in examples/*.sh; do
  step "example $example" "run it alone: $example --smoke" "$example" --smoke
  tell_skipped "example $example"
done

printf '\n'
tail -n 4 "$logs/test-release.log"
printf '%s\n' "${summaries[@]}"
printf 'all well in %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
