"""What rows d to g of bench/compare-llamacpp.sh talk to: a node of ours and the peer's servers, as
processes on free ports of loopback, and a client of the peer's OpenAI endpoint."""
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time

# One token each, with the space before it, in the vocabularies at hand.
WORDS = ("time year people way day man thing woman life child world school state family student "
         "group country problem hand part place case week company system program question work "
         "government number night point home water room mother area money story fact month lot "
         "right study book eye job word business issue side kind head house service friend father "
         "power hour game line end member law car city community name president team minute idea "
         "body information back parent face others level office door health person art war "
         "history party result change morning reason research girl guy moment air teacher").split()


# As in peer.py: where others run, a measurement ends early, and its round does not count.
SECONDS_MAX = 30


class Node:
    """A node of ours that serves one model."""

    def __init__(self, model, threads):
        self.process = subprocess.Popen(
            ["build/release/sluice", "node", "--model", model, "--threads", str(threads),
             "--listen", "tcp://127.0.0.1:0", "--log-level", "error"],
            stdout=subprocess.PIPE, text=True)
        ready = self.process.stdout.readline().split()
        if not ready:
            raise RuntimeError("the node did not start; its output is above")
        self.endpoint = ready[1]

    def load(self, *arguments):
        """What `sluice bench serve` says of a load."""
        done = subprocess.run(["build/release/sluice", "bench", "serve", "--connect", self.endpoint,
                               "--json", *map(str, arguments)], stdout=subprocess.PIPE, check=True)
        report = json.loads(done.stdout)
        if report["failed"]:
            raise RuntimeError(f"the node failed {report['failed']} requests: {report['failures']}")
        return report


class Server:
    """A server of the peer's, up when it answers."""

    def __init__(self, command, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        with open(log, "wb") as out:
            self.process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port",
                                             str(self.port)], stdout=out, stderr=out)
        deadline = time.monotonic() + 120
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                stop(self)
                raise RuntimeError(f"{command[0]} did not start; its output is in {log}")
            time.sleep(0.2)

    def answers(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/v1/models")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stream(self, prompt, tokens):
        """One streamed completion: milliseconds from its sending to each piece of text."""
        body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0,
                           "stream": True, "cache_prompt": False, "ignore_eos": True})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        arrivals = []
        for line in response:
            if line.startswith(b"data:") and b'"text"' in line:
                arrivals.append((time.monotonic() - began) * 1e3)
                if len(arrivals) > 1 and arrivals[-1] > SECONDS_MAX * 1e3:
                    break
        connection.close()
        if response.status != 200 or not arrivals:
            raise RuntimeError(f"the peer's server answered {response.status} and no text")
        return arrivals

    def load(self, prompts, at_once, tokens):
        """The arrivals of each of the prompts' answers, so many requests at once."""
        answers, waiting, failures = [], list(prompts), []

        def work():
            try:
                while waiting:
                    answers.append(self.stream(waiting.pop(), tokens))
            except (OSError, RuntimeError, IndexError) as error:
                failures.append(error)
        clients = [threading.Thread(target=work) for _ in range(at_once)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        if failures or len(answers) != len(prompts):
            raise RuntimeError(f"the peer's server failed requests: {failures}")
        return answers


def stop(server):
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        try:
            server.process.wait(30)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


def peer_servers(run, model, streams):
    """The peer's servers, by name, with the settings that suit them best: flash attention; what
    would answer from an earlier prompt is off, as no prompt comes twice. And why one is missing."""
    threads, folder, servers, missing = str(run.threads), "build/log", {}, {}
    os.makedirs(folder, exist_ok=True)
    commands = {"llama_cpp.server": [
        run.python, "-m", "llama_cpp.server", "--model", model, "--n_ctx", "2048", "--n_threads",
        threads, "--n_threads_batch", threads, "--flash_attn", "true", "--logits_all", "false",
        "--interrupt_requests", "false"]}
    if run.tools:
        commands["llama-server"] = [
            str(run.tools / "llama-server"), "-m", model, "-c", str(streams * 512), "-np",
            str(streams), "-t", threads, "-tb", threads, "-fa", "on", "--cache-ram", "0"]
    else:
        missing["llama-server"] = "no --tools"
    for name, command in commands.items():
        try:
            servers[name] = Server(command, f"{folder}/{name}.log")
        except (RuntimeError, OSError) as error:
            missing[name] = str(error)
    return servers, missing


class Prompts:
    """Texts of exactly so many tokens, none like another from its first word on."""

    def __init__(self, run, model, tokens):
        self.run, self.model, self.tokens = run, model, tokens
        self.random = random.Random(1)

    def take(self, count):
        """Some prompts never taken before."""
        found = []
        while len(found) < count:
            texts = [" ".join(self.random.choices(WORDS, k=self.tokens)) for _ in range(count)]
            sizes = self.run.peer.call("count_tokens", model=self.model, texts=texts)
            found += [text for text, size in zip(texts, sizes) if size == self.tokens]
        return found[:count]
