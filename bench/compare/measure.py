"""Rounds of alternating measurements, each between two probes of the machine. Standard library
only, and small: what it starts inherits its peak of memory."""
import json
import os
import resource
import statistics
import subprocess
import sys
import time

# A round counts if bandwidth at its start and at its end differ by no more than this share, and if
# others took no more of the processors than `Machine.others_max`.
DRIFT_MAX = 0.10


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
    """A peer in a process of its own, a script of this folder; `call` is one measurement."""

    def __init__(self, name, python, script, *arguments):
        script = os.path.join(os.path.dirname(__file__), script)
        self.name, self.command = name, [python, script, *map(str, arguments)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def call(self, what, **arguments):
        self.process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if line:
            answer = json.loads(line)
        else:  # the next call finds another one
            answer = {"error": f"the process ended with {self.process.wait()}"}
            self.start()
        if "error" in answer:
            raise RuntimeError(f"{self.name}, {what} {arguments}: {answer['error']}")
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

    def __init__(self, others_max):
        self.others_max = others_max
        self.running = []  # what outlives a round: each has its `process`

    def now(self):
        own = sum(sum(resource.getrusage(who)[:2])
                  for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        used = sum(used_s(one.process.pid) for one in self.running)
        return os.times().elapsed, busy_s() - own - used

    def others(self, before):
        """The share of all processors that processes not ours took since then."""
        elapsed, busy = (b - a for a, b in zip(before, self.now()))
        return max(0.0, busy / (elapsed * os.cpu_count()))

    def wait_for_quiet(self, deadline):
        """Until others leave the processors alone for a moment; false: not before the deadline."""
        while time.monotonic() < deadline:
            start = self.now()
            time.sleep(0.3)
            if self.others(start) <= self.others_max:
                return True
        return False


class Rounds:
    """What was measured: `samples` holds a list for each name, one value a round that counted."""

    def __init__(self):
        self.samples, self.bandwidths, self.others = {}, [], []
        self.thrown = 0

    def add(self, one):
        """Takes a round in, or throws it away."""
        if not one.counts:
            self.thrown += 1
            return
        self.bandwidths.append(one.bandwidth)
        self.others.append(one.others)
        for name, value in one.values.items():
            self.samples.setdefault(name, []).append(value)

    def median(self, name):
        return statistics.median(self.samples[name])

    def best(self, names, lower=False):
        """The name with the highest median, or the lowest."""
        return (min if lower else max)(names, key=self.median)

    def summary(self):
        return {"rounds": len(self.bandwidths), "rounds_thrown_away": self.thrown,
                "others_cpu_share": statistics.median(self.others),
                "read_bandwidth_gb_s": statistics.median(self.bandwidths), "samples": self.samples}


class Round:
    """One turn of every call, and what the machine did meanwhile."""

    def __init__(self, machine, names, calls, size, threads):
        start = machine.now()
        before = bandwidth(size, threads)
        self.values, self.counts = {}, False
        for name in names:
            if self.values and machine.others(start) > machine.others_max:
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
        self.counts = drift <= DRIFT_MAX and self.others <= machine.others_max


def alternate(run, calls, size, threads):
    """Runs every call (name to function that gives a number, or numbers by name) once a round, in
    turn and every other round backwards, until enough rounds count. One in which the bandwidth at
    `size` bytes drifted or others ran is thrown away. Raises when patience ends before one counts;
    ends with fewer than wanted when it ends later."""
    deadline = time.monotonic() + run.patience_s
    rounds = Rounds()
    while len(rounds.bandwidths) < run.rounds:
        if not run.machine.wait_for_quiet(deadline):
            break
        names = list(calls)
        if (len(rounds.bandwidths) + rounds.thrown) % 2 == 1:
            names.reverse()
        rounds.add(Round(run.machine, names, calls, size, threads))
    if not rounds.bandwidths:
        raise RuntimeError(f"the machine did not hold still for one round in {run.patience_s:.0f} "
                           f"s ({rounds.thrown} thrown away)")
    return rounds
