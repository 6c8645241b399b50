"""The nodes of a fleet, each a process on a host of its own, that can be killed and stopped."""

import os
import pathlib
import signal
import subprocess
import time

CLIENTS_PORT = 5570
PEERS_PORT = 7000


class Node:
    def __init__(self, fleet, name, options):
        self.fleet, self.name, self.options = fleet, name, options
        self.process = None
        self.log = fleet.folder / f"{name}.log"

    def start(self):
        network = self.fleet.network
        command = [*network.enter(self.name), self.fleet.binary, "node", "--config",
                   str(self.fleet.config), "--model", self.fleet.model, "--name", self.name,
                   "--collectives", network.address[self.name], "--insecure", *self.options]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.DEVNULL, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def terminate(self):
        self.process.terminate()

    def end(self, timeout_s):
        """As an operator does. Returns the exit code; None: it had to be killed."""
        self.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


class Fleet:
    """Two fronts, an engine whose batcher and rank 0 are one node, and two further ranks; `extra`
    is a third, which runs only where a fault wants a rank in reserve."""

    FRONTS = ("front", "spare")
    HOSTS = ("front", "spare", "leader", "second", "third", "extra")

    def __init__(self, network, binary, model, folder, streams):
        self.network, self.binary, self.model = network, binary, model
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "node.toml"
        # Ranks that miss each other within a step have no link that could be lost: they notice by
        # `step_ms`.
        self.config.write_text("[peers]\nstep_ms = 2000\ngroup_start_ms = 10000\n")
        engine = ["--tp", "3", "--threads", "1", "--slots", str(streams), "--context", "512"]
        peers = {name: f"tcp://{network.address[name]}:{PEERS_PORT}" for name in self.HOSTS}
        clients = {name: f"tcp://{network.address[name]}:{CLIENTS_PORT}" for name in self.FRONTS}
        self.endpoints = clients
        self.nodes = {}
        for name in self.FRONTS:
            self.add(name, "--roles", "front,tokenizer", "--listen", clients[name],
                     "--peers-listen", peers[name], *engine)
        self.add("leader", "--roles", "engine,executor", "--ranks", "1", "--peers-listen",
                 peers["leader"], "--join", ",".join(peers[name] for name in self.FRONTS), *engine)
        for name in ("second", "third", "extra"):
            self.add(name, "--roles", "executor", "--join", peers["leader"], *engine)

    def add(self, name, *options):
        self.nodes[name] = Node(self, name, options)

    def start(self):
        for name, node in self.nodes.items():
            if name != "extra":
                node.start()

    def dead(self):
        """Nodes that ended without having been told to."""
        return [name for name, node in self.nodes.items()
                if name != "extra" and node.process.poll() is not None]

    def mark(self, text):
        """Into every node's log, to find a round in it."""
        for node in self.nodes.values():
            with open(node.log, "a", encoding="utf-8") as log:
                log.write(f"---- {time.strftime('%H:%M:%S')} {text}\n")


