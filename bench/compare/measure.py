"""Rounds of alternating measurements, each between two probes of the machine. Standard library
only, and small: what it starts inherits its peak of memory."""
import json
import os
import resource
import statistics
import subprocess
import sys
import time

# A round counts if bandwidth at its start and at its end differ by no more than this, and if no
# more of the processors went to others.
DRIFT_MAX = 0.10
OTHERS_MAX = 0.15


def say(text):
    print(text, file=sys.stderr, flush=True)


def bench(*arguments):
    """What `sluice-bench ... --json` prints."""
    done = subprocess.run(["build/release/sluice-bench", "--json", *map(str, arguments)],
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def bandwidth(size, threads):
    """GB/s at which so many threads read so many bytes."""
    return bench("--bandwidth", int(size), "--threads", threads)["read_bandwidth_gb_s"]


class Peer:
    """peer.py, running; `call` is one measurement."""

    def __init__(self, python):
        folder = os.path.dirname(os.path.abspath(__file__))
        self.process = subprocess.Popen([python, os.path.join(folder, "peer.py")], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, what, **arguments):
        self.process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"llama.cpp, {what} {arguments}: {answer['error']}")
        return answer["value"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def busy_s():
    """Seconds that all processors have worked since boot."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _wait, *rest = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def used_s(pid):
    """Seconds that a running process has worked."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Machine:
    """Counts what others do to it meanwhile."""

    def __init__(self):
        self.running = []  # ours that outlive a round

    def now(self):
        own = sum(sum(resource.getrusage(who)[:2])
                  for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return os.times().elapsed, busy_s() - own - sum(map(used_s, self.running))

    def others(self, before):
        """The share of all processors that processes not ours took since then."""
        elapsed, busy = (b - a for a, b in zip(before, self.now()))
        return max(0.0, busy / (elapsed * os.cpu_count()))

    def wait_for_quiet(self, deadline):
        """Until others leave the processors alone for a moment, or the deadline."""
        while time.monotonic() < deadline:
            start = self.now()
            time.sleep(0.3)
            if self.others(start) <= OTHERS_MAX:
                return


class Rounds:
    """What was measured: `samples` holds a list for each name, one value a round that counted."""

    def __init__(self):
        self.samples, self.bandwidths, self.others = {}, [], []
        self.thrown, self.steady = 0, True

    def median(self, name):
        return statistics.median(self.samples[name])

    def best(self, names, lower=False):
        """The name with the highest median, or the lowest."""
        return (min if lower else max)(names, key=self.median)

    def summary(self):
        return {"rounds": len(self.bandwidths), "rounds_thrown_away": self.thrown,
                "steady": self.steady, "others_cpu_share": statistics.median(self.others),
                "read_bandwidth_gb_s": statistics.median(self.bandwidths), "samples": self.samples}


class Round:
    """One turn of every call, and what the machine did meanwhile."""

    def __init__(self, machine, names, calls, size, threads, give_up):
        start = machine.now()
        before = bandwidth(size, threads)
        self.values, self.complete = {}, True
        for name in names:
            if give_up and machine.others(start) > OTHERS_MAX:
                self.complete = False
                return
            value = calls[name]()
            if isinstance(value, dict):
                self.values |= {f"{name}, {figure}": one for figure, one in value.items()}
            else:
                self.values[name] = value
        after = bandwidth(size, threads)
        self.bandwidth = (before + after) / 2
        self.others = machine.others(start)
        drift = abs(after - before) / max(after, before)
        self.disturbed = max(drift / DRIFT_MAX, self.others / OTHERS_MAX)


def alternate(run, calls, size, threads):
    """Runs every call (name to function that gives a number, or numbers by name) once a round, in
    turn and every other round backwards, until enough rounds count. One in which the bandwidth at
    `size` bytes drifted or others ran is thrown away. When patience is at its end before enough are
    left, those that were disturbed least are taken (at least one), and `steady` is false."""
    deadline = time.monotonic() + run.patience_s
    tried, number, rounds = [], 0, Rounds()
    while sum(one.disturbed <= 1 for one in tried) < run.rounds:
        late = time.monotonic() > deadline
        if late and tried:
            break
        run.machine.wait_for_quiet(deadline)
        names = list(calls) if number % 2 == 0 else list(reversed(calls))
        one = Round(run.machine, names, calls, size, threads, give_up=not late)
        number += 1
        if one.complete:
            tried.append(one)
    taken = sorted(tried, key=lambda one: one.disturbed)[:run.rounds]
    rounds.steady = len(taken) == run.rounds and taken[-1].disturbed <= 1
    rounds.thrown = number - len(taken)
    for one in taken:
        rounds.bandwidths.append(one.bandwidth)
        rounds.others.append(one.others)
        for name, value in one.values.items():
            rounds.samples.setdefault(name, []).append(value)
    return rounds
