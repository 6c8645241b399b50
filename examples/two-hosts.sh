#!/usr/bin/env bash
# Two hosts on one machine: SmolLM2 in a tensor-parallel group of three ranks, one on host a and two
# on host b, each host a network namespace of its own, with a wire between them that has latency.
# Streams a completion; then again, while host b's processes are killed and started anew.
#   examples/two-hosts.sh [--smoke] [--delay MS] [PROMPT]
#     --smoke      fewer tokens: below 45 s
#     --delay MS   one way (default 0.5); 0: the wire's own
# Where namespaces are not permitted it says so and exits 0. Needs build/release/sluice and a model
# (scripts/demo.sh makes both), ip and tc (iproute2), unshare and nsenter (util-linux), and python3
# where the kernel has no netem.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  echo "two-hosts: skipped: $*"
  exit 0
}

# All of it lives in namespaces of this script's own: they end with it, and what runs in them,
# however it ends.
if [[ ${1:-} != --inside ]]; then
  for tool in ip tc unshare nsenter; do
    [[ -n $(PATH=$PATH:/usr/sbin:/sbin type -P "$tool") ]] || skip "$tool is not installed"
  done
  own=(unshare --net --mount --pid --fork --kill-child --mount-proc)
  ((EUID == 0)) || own+=(--user --map-root-user)
  why=$("${own[@]}" true 2>&1) || skip "namespaces are not permitted here (${why:-unshare failed})"
  "${own[@]}" "$0" --inside "$@" &
  # unshare passes no signal on; what it started ends with it.
  trap 'kill -KILL "$!" 2>/dev/null || true' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  wait "$!"
  exit
fi
shift

PATH=$PATH:/usr/sbin:/sbin
sluice=build/release/sluice
tokens=96 delay_ms=0.5 prompt='The capital of France is'
while (($#)); do
  case $1 in
    --smoke) tokens=48 ;;
    --delay) delay_ms=${2:?--delay wants milliseconds} && shift ;;
    -*) sed -n '2,10s/^# \{0,1\}//p' "$0"; [[ $1 == --help ]] && exit 0 || exit 2 ;;
    *) prompt=$1 ;;
  esac
  shift
done
if [[ ! -x $sluice ]]; then
  echo "two-hosts: $sluice is missing: scripts/demo.sh builds it" >&2
  exit 1
fi
model=$(scripts/fetch-model.sh --path)

mount -t tmpfs tmpfs /run  # this script's own, as all that is mounted and started here
work=/run/two-hosts
mkdir "$work"

fail() {
  echo "two-hosts: $*" >&2
  tail -n 20 "$work"/*.log >&2
  exit 1
}

# wait_for FILE TEXT: until a line of FILE has it.
wait_for() {
  local tries
  for ((tries = 0; tries < 300; ++tries)); do
    grep -q -- "$2" "$1" 2>/dev/null && return
    sleep 0.1
  done
  fail "\"$2\" did not come within 30 s"
}

# on HOST COMMAND...
on() {
  local host=$1
  shift
  nsenter --net="/run/netns/$host" "$@"
}

ip netns add a
ip netns add b
# The wire: a pair of devices whose packets netem holds up; where the kernel has no netem, a process
# that carries them from one device to the other.
ip link add wire-a netns a type veth peer name wire-b netns b
wire="no latency added"
if [[ $delay_ms != 0 ]]; then
  wire="$delay_ms ms each way (tc netem)"
  if ! { on a tc qdisc add dev wire-a root netem delay "${delay_ms}ms" &&
         on b tc qdisc add dev wire-b root netem delay "${delay_ms}ms"; } 2>"$work/tc.txt"; then
    why="tc: $(head -n 1 "$work/tc.txt")"
    if [[ -r /dev/net/tun && -w /dev/net/tun ]]; then
      on a ip link delete wire-a
      python3 examples/delayed_wire.py "$delay_ms" a wire-a b wire-b \
        >"$work/wire.out" 2>"$work/wire.log" &
      wait_for "$work/wire.out" there
      wire="$delay_ms ms each way (examples/delayed_wire.py; $why)"
    else
      wire="no latency added ($why; /dev/net/tun is not for this user)"
    fi
  fi
fi
for host in a b; do
  on "$host" ip link set lo up
  on "$host" ip address add "10.77.0.$([[ $host == a ]] && echo 1 || echo 2)/24" dev "wire-$host"
  on "$host" ip link set "wire-$host" up
done

# node HOST NAME OPTIONS...: starts one; its process is $!.
node() {
  local host=$1 name=$2
  shift 2
  # Plain on the wire: it ends in these two namespaces.
  nsenter --net="/run/netns/$host" "$sluice" node --model "$model" --name "$name" --tp 3 \
    --threads 1 --insecure --collectives "10.77.0.$([[ $host == a ]] && echo 1 || echo 2)" "$@" \
    >"$work/$name.out" 2>>"$work/$name.log" &
}
leader() {
  node a leader --ranks 1 --listen "ipc://$work/clients" --peers-listen tcp://10.77.0.1:7000
}
ranks() { node b ranks --roles executor --ranks 2 --join tcp://10.77.0.1:7000; }

echo "host a   10.77.0.1: front, tokenizer, engine, rank 0 of 3"
echo "host b   10.77.0.2: ranks 1 and 2, a process each"
echo "wire     $wire"
leader
leader=$!
ranks
ranks=$!
wait_for "$work/leader.out" '^ready '
echo "ready    the group of three formed after $SECONDS s"

complete() {
  on a "$sluice" complete --connect "ipc://$work/clients" --prompt "$prompt" \
    --max-tokens "$tokens" --temperature 0 "$@"
}
printf 'answer   %s' "$prompt"
complete --receipt 2>"$work/receipt" | tee "$work/undisturbed" || fail "the completion failed"
cat "$work/receipt"

echo "again    and host b loses its processes meanwhile"
complete >"$work/disturbed" &
completion=$!
# Killed in the middle: once a first token is there.
for ((tries = 0; tries < 300; ++tries)); do
  [[ -s $work/disturbed ]] && break
  sleep 0.02
done
{ kill -KILL "$ranks" && wait "$ranks"; } 2>/dev/null || true  # else bash tells of it as well
held=$(wc -c <"$work/disturbed")
echo "killed   both ranks on host b when $held bytes of the answer had come; starting them anew"
ranks
wait "$completion" || fail "the disturbed completion failed"
cmp "$work/undisturbed" "$work/disturbed" || fail "the disturbed completion has another text"
wait_for "$work/leader.log" engine_replaced
if ((held < $(wc -c <"$work/undisturbed"))); then
  echo "same     the stream paused and went on: the same text, to the byte"
else
  echo "over     the answer was whole before host b was lost; --delay or more tokens show a pause"
fi

kill -TERM "$leader"
wait "$leader" || fail "the leader did not stop cleanly (exit $?)"
echo "stopped  cleanly"
