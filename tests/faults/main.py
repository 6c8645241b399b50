#!/usr/bin/env python3
"""Shows that no fault of one process or wire loses, doubles or changes a token.

Two fronts, the leader of a tensor-parallel group of three and its two further ranks, each on a host
of its own (a network namespace). 20 streams run, greedy and seeded; in each round one thing breaks
in their middle and is mended later. Every stream must bring the tokens of an undisturbed run, each
once, and end once in its highest epoch. Prints, by fault, how long streams paused: the longest gap
between two tokens. Run it by scripts/faults.sh, which makes the namespaces.
"""

import argparse
import random
import sys
import time
from functools import partial

import checker
import fleet as fleets
import network as networks
import streams as clients

ROUND_S = 60  # what is not over by then is lost


class Fault:
    """`harm` breaks something; `mend`, `after_s` later, makes it whole, or says False: not yet."""

    def __init__(self, name, harm, mend, after_s, on_front=None, before=None):
        self.name, self.harm, self.mend, self.after_s = name, harm, mend, after_s
        self.on_front = on_front  # all streams begin at the front that it concerns
        self.before = before  # done while all is quiet


def start_anew(node):
    """After SIGTERM, once it has ended as it should."""
    code = node.process.poll()
    if code is None:
        return False
    if code != 0:
        raise RuntimeError(f"{node.name} ended with {code} after SIGTERM")
    node.start()
    return True


def spare_rank(fleet, rank):
    """The group forms anew on a rank that was not of it; the killed one comes back later."""
    return Fault("SIGKILL a rank, another takes its place", rank.kill, rank.start, 2.0,
                 before=fleet.nodes["extra"].start)


def faults_of(fleet, turn):
    """One of each kind; which front and which ranks it concerns changes with the turn."""
    net, nodes = fleet.network, fleet.nodes
    front = ("front", "spare")[turn % 2]
    ranks = ("second", "third") if turn % 2 == 0 else ("third", "second")
    kinds = []
    for name, what in ((front, "a front"), ("leader", "the leader"), (ranks[0], "a rank")):
        node, on_front = nodes[name], front if name == front else None
        kinds += [
            Fault(f"SIGKILL {what}, back 1 s later", node.kill, node.start, 1.0, on_front),
            Fault(f"SIGTERM {what}, started anew", node.terminate,
                  partial(start_anew, node), 0.2, on_front),
            Fault(f"SIGSTOP {what}, SIGCONT 3 s later", node.stop, node.go_on, 3.0, on_front),
            Fault(f"unplug {what}, 3 s", partial(net.unplug, name), partial(net.plug, name), 3.0,
                  on_front),
        ]
    kinds.append(spare_rank(fleet, nodes[ranks[0]]))
    for a, b, what in ((front, "leader", "a front and the leader"),
                       ("leader", ranks[1], "the leader and a rank"),
                       (ranks[0], ranks[1], "two ranks"),
                       ("clients", front, "the clients and a front")):
        kinds.append(Fault(f"cut {what}, 3 s", partial(net.cut, a, b), partial(net.join, a, b), 3.0,
                           front if front in (a, b) else None))
    for a, b, what in (("leader", ranks[0], "the leader to a rank"),
                       (ranks[0], "leader", "a rank to the leader"),
                       ("leader", front, "the leader to a front")):
        kinds.append(Fault(f"lose {what}, one way, 3 s", partial(net.drop, a, b),
                           partial(net.carry, a, b), 3.0, front if b == front else None))
    return kinds


class Run:
    def __init__(self, fleet, options):
        self.fleet, self.options = fleet, options
        self.clients = clients.Clients(fleet.endpoints)
        self.random = random.Random(options.seed)
        self.expected = {}
        self.pauses = {}
        self.wrong = []

    def wait_ready(self, limit_s=60):
        """Until both fronts have an engine whose group is whole."""
        until = time.monotonic() + limit_s
        while True:
            self.clients.ask_health()
            asked = time.monotonic()
            while time.monotonic() < asked + 0.2:
                self.clients.step(0.05)
            if all(front.ready for front in self.clients.fronts.values()):
                return
            if dead := self.fleet.dead():
                raise RuntimeError(f"ended by themselves: {', '.join(dead)}")
            if time.monotonic() > until:
                raise RuntimeError(f"the fleet was not ready within {limit_s} s")

    def new_streams(self, on_front):
        names = list(self.clients.fronts)
        return [clients.Stream(i, on_front or names[i % 2], self.options.tokens)
                for i in range(self.options.streams)]

    def drive(self, streams, fault):
        """Until all streams are over and what broke is whole. Returns what is wrong."""
        total = len(streams) * self.options.tokens
        at = int(total * self.random.uniform(0.15, 0.6))
        mend_at, harmed = None, fault is None
        began = time.monotonic()
        self.clients.begin(streams)
        while True:
            self.clients.step(0.02)
            now = time.monotonic()
            if not harmed and sum(len(s.tokens) for s in streams) >= at:
                fault.harm()
                harmed, mend_at = True, now + fault.after_s
            if mend_at is not None and now >= mend_at and fault.mend() is not False:
                mend_at = None
            over = all(s.complete() for s in streams)
            if over and harmed and mend_at is None:
                break
            if now > began + ROUND_S:
                if mend_at is not None:
                    fault.mend()
                for s in streams:
                    if not s.complete():
                        s.complain(f"lost: {len(s.tokens)} tokens after {ROUND_S} s")
                break
        return now - began

    def judge(self, streams):
        for s in streams:
            expected = self.expected.setdefault(s.number, (s.tokens, s.text, s.chain))
            if (s.tokens, s.text, s.chain) != expected:
                s.complain(f"other tokens than undisturbed: {s.tokens} and not {expected[0]}")
        return [wrong for s in streams for wrong in s.wrong]

    def round(self, number, fault):
        self.fleet.mark(f"round {number}: {fault.name if fault else 'undisturbed'}")
        if fault and fault.before:
            fault.before()
        streams = self.new_streams(fault.on_front if fault else None)
        took_s = self.drive(streams, fault)
        # Whoever was stopped or cut off may still speak: it must not matter.
        self.wait_ready()
        if fault and fault.before:
            self.fleet.nodes["extra"].end(10)
            self.wait_ready()
        wrong = self.judge(streams)
        pauses = [s.pause_s() for s in streams if len(s.gained) > 1]
        if fault:
            self.pauses.setdefault(fault.name, []).append(pauses)
        print(f"{number:4}  {fault.name if fault else 'undisturbed':42} "
              f"pause {1000 * max(pauses):6.0f} ms at most, {took_s:4.1f} s, "
              f"{max(s.epoch for s in streams)} epochs more: "
              f"{'well' if not wrong else f'{len(wrong)} WRONG'}", flush=True)
        for line in wrong:
            print(f"      {line[:400]}", flush=True)
        self.wrong += wrong

    def stop(self):
        """All of it, as an operator does: nothing that broke may keep a node from ending."""
        for node in self.fleet.nodes.values():
            if node.process is not None and node.process.poll() is None:
                code = node.end(20)
                if code != 0:
                    self.wrong.append(f"{node.name} ended with {code} after SIGTERM")
                    print(f"faults: {self.wrong[-1]}", flush=True)

    def report(self):
        rounds = sum(len(r) for r in self.pauses.values())
        print("\n| fault | rounds | pause p50 | p99 |\n|---|---|---|---|")
        for name, of_rounds in self.pauses.items():
            gaps = sorted(gap for gaps in of_rounds for gap in gaps)
            p50, p99 = (gaps[min(len(gaps) - 1, int(len(gaps) * q))] for q in (0.5, 0.99))
            print(f"| {name} | {len(of_rounds)} | {p50:.2f} s | {p99:.2f} s |")
        print(f"\n{rounds} rounds with a fault, {rounds * self.options.streams} streams: "
              f"{len(self.wrong)} wrong")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--short", action="store_true", help="six rounds of different kinds")
    parser.add_argument("--fault", default="", help="only those whose name has this")
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the faults")
    parser.add_argument("--limit", type=float, default=0, help="seconds: no new round after")
    parser.add_argument("--binary", default="build/release/sluice")
    parser.add_argument("--model", required=True)
    parser.add_argument("--keep", metavar="FOLDER", help="for the nodes' logs")
    options = parser.parse_args()
    if options.short:
        options.rounds, options.tokens, options.limit = 6, 32, 40
    if not networks.is_private():
        sys.exit("faults: run scripts/faults.sh: this test breaks networks, and needs its own")
    checker.check()
    began = time.monotonic()
    network = networks.Network(fleets.Fleet.HOSTS)
    fleet = fleets.Fleet(network, options.binary, options.model, options.keep or "/run/nodes",
                         options.streams)
    kinds = [f for turn in (0, 1) for f in faults_of(fleet, turn) if options.fault in f.name]
    if not kinds:
        sys.exit(f"faults: no fault's name has '{options.fault}'")
    if options.short:  # one of each kind that differs most
        names = ("SIGKILL a front,", "SIGSTOP the leader", "SIGKILL a rank, back", "cut two ranks",
                 "SIGTERM a front", "unplug a rank")
        kinds = [next(f for f in kinds if f.name.startswith(name)) for name in names]
    fleet.start()
    run = Run(fleet, options)
    try:
        run.wait_ready()
        print(f"the group formed after {time.monotonic() - began:.1f} s", flush=True)
        run.round(0, None)
        for number in range(options.rounds):
            if number > 0 and options.limit and time.monotonic() - began > options.limit:
                print(f"no new round after {options.limit:.0f} s", flush=True)
                break
            run.round(number + 1, kinds[number % len(kinds)])
        run.stop()
    except RuntimeError as error:
        run.wrong.append(str(error))
        print(f"faults: {error}", flush=True)
    run.report()
    if run.wrong and not options.keep:
        for node in (n for n in fleet.nodes.values() if n.log.exists()):
            print(f"\n==== {node.name}\n" + "".join(open(node.log).readlines()[-25:]))
    sys.exit(1 if run.wrong else 0)


if __name__ == "__main__":
    main()
