# shellcheck shell=bash
# Sourced by the other scripts. A step runs quietly and takes one line with its time; a step that
# fails shows its output, names itself and the remedy, and ends the script.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
logs=$root/build/log
mkdir -p "$logs"

# The last lines of a failed step's output that are shown; the log file has all of them.
step_lines_shown=${step_lines_shown:-120}

# step NAME REMEDY COMMAND...
step() {
  local name=$1 remedy=$2 began=$SECONDS log status=0
  shift 2
  log=$logs/${name//[^A-Za-z0-9]/-}.log
  [[ -t 1 ]] && printf '...    %s' "$name"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  [[ -t 1 ]] && printf '\r\033[K'
  if ((status == 0)); then
    printf 'ok %5ds  %s\n' $((SECONDS - began)) "$name"
    return 0
  fi
  printf 'FAILED after %d s: %s (exit %d)\n' $((SECONDS - began)) "$name" "$status" >&2
  tail -n "$step_lines_shown" "$log" >&2
  printf '\nstep:    %s\ncommand: %s\noutput:  %s\nremedy:  %s\n' "$name" "$*" "$log" "$remedy" >&2
  exit 1
}

# tell_skipped NAME: whether a step that ended well said that it cannot run here, and why.
tell_skipped() {
  local why
  why=$(sed -n 's/^[a-z-]*: skipped: //p' "$logs/${1//[^A-Za-z0-9]/-}.log")
  [[ -z $why ]] || printf 'not done    %s: %s\n' "$1" "$why"
}

# Configures a preset and builds targets (all of them when none are named).
build_preset() {
  local preset=$1
  shift
  cmake --preset "$preset" && cmake --build "build/$preset" ${1:+--target "$@"}
}

# Runs the tests of a preset; further arguments go to ctest.
test_preset() {
  local preset=$1
  shift
  ctest --preset "$preset" -j "$(nproc)" "$@"
}

# The names of tests/fuzz/*.cpp.
fuzzers() {
  local source
  for source in tests/fuzz/*.cpp; do
    [[ -e $source ]] && basename "$source" .cpp
  done
  return 0
}

# run_fuzzer NAME SECONDS: from the committed seeds, into a corpus kept in the build folder.
run_fuzzer() {
  local name=$1 seconds=$2 corpus=$root/build/fuzz/corpus/$1 seeds=$root/tests/fuzz/corpus/$1
  mkdir -p "$corpus"
  [[ -d $seeds ]] || seeds=
  "build/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
    -artifact_prefix="$logs/fuzz-$name-" -print_final_stats=1 "$corpus" ${seeds:+"$seeds"}
}

# with_node COMMAND...: starts a node on loopback, runs COMMAND with its endpoint as last argument,
# stops the node with SIGTERM. Fails when COMMAND does, or when the node does not exit with 0.
with_node() {
  local ready endpoint='' status=0 node_status=0 log=$logs/node.log
  ready=$(mktemp -u "${TMPDIR:-/tmp}/sluice-ready.XXXXXX")
  mkfifo "$ready"
  build/release/sluice node --model "$(scripts/fetch-model.sh --path)" \
    --listen tcp://127.0.0.1:0 >"$ready" 2>"$log" &
  node=$!
  # A script that ends early must not leave its node behind.
  trap 'kill "$node" 2>/dev/null; rm -f "$ready"' EXIT
  read -r _ endpoint <"$ready" || true
  if [[ -n $endpoint ]]; then
    "$@" "$endpoint" || status=$?
    kill -TERM "$node" 2>/dev/null || true
  fi
  wait "$node" || node_status=$?
  trap - EXIT
  rm -f "$ready"
  if [[ -z $endpoint ]] || ((node_status != 0)); then
    cat "$log" >&2
    echo "the node ended with exit $node_status${endpoint:+ after SIGTERM}; its output is above" >&2
    return 1
  fi
  return "$status"
}
