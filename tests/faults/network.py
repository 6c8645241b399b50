"""Hosts as network namespaces on one bridge, and what can go wrong with the wires between them.

Lives in namespaces of the whole test's own (scripts/faults.sh), so that nothing outlasts it. The
test itself sits at the bridge, at 10.77.0.254.
"""

import os
import subprocess

CLIENTS = "10.77.0.254"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class Network:
    def __init__(self, hosts):
        self.address = {host: f"10.77.0.{i + 1}" for i, host in enumerate(hosts)}
        self.address["clients"] = CLIENTS
        run("mount", "-t", "tmpfs", "tmpfs", "/run")  # the test's own, and gone with it
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "address", "add", f"{CLIENTS}/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")
        for host in hosts:
            run("ip", "netns", "add", host)
            run("ip", "link", "add", f"to-{host}", "type", "veth", "peer", "name", "wire", "netns",
                host)
            run("ip", "link", "set", f"to-{host}", "master", "bridge", "up")
            self._in(host, "link", "set", "lo", "up")
            self._in(host, "address", "add", f"{self.address[host]}/24", "dev", "wire")
            self._in(host, "link", "set", "wire", "up")

    def enter(self, host):
        """What to put before a command that shall run on a host."""
        return ["nsenter", f"--net=/run/netns/{host}"]

    def _in(self, host, *arguments):
        prefix = [] if host == "clients" else self.enter(host)
        run(*prefix, "ip", *arguments)

    def unplug(self, host):
        """Nothing reaches the host and nothing leaves it; nobody is told."""
        run("ip", "link", "set", f"to-{host}", "down")

    def plug(self, host):
        run("ip", "link", "set", f"to-{host}", "up")

    def drop(self, sender, receiver):
        """What the one sends to the other is lost, and that alone."""
        self._in(sender, "route", "replace", "blackhole", f"{self.address[receiver]}/32")

    def carry(self, sender, receiver):
        self._in(sender, "route", "del", "blackhole", f"{self.address[receiver]}/32")

    def cut(self, a, b):
        self.drop(a, b)
        self.drop(b, a)

    def join(self, a, b):
        self.carry(a, b)
        self.carry(b, a)


def is_private():
    """Whether this process is the first of its process namespace: all else dies with it."""
    return os.getpid() == 1
