"""Rows e to g of bench/compare-llamacpp.sh, and row d's second half: through a node."""
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from engine_rows import BIG, MANY_STREAMS, SMALL, result
from measure import alternate, bench
from service import Node, Prompts, peer_servers, stop

OUT = pathlib.Path("build/compare-llamacpp")


def models(rows):
    names = set()
    if "d" in rows or "f" in rows or "g" in rows:
        names.add(f"{SMALL}-Q4_1")
    if "e" in rows:
        names |= {f"{SMALL}-Q4_1", f"{SMALL}-Q4_0"}
    if "g" in rows:
        names.add(f"{BIG}-Q4_0")
    return names


def written(prompts):
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "prompts.txt"
    path.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return path


def row_d(run):
    """A load of short prompts and 64 tokens each, through a node; the peer's through its batched
    API, without a server."""
    entry = run.models[f"{SMALL}-Q4_1"]
    model, tokens, counts = entry["path"], 64, (8, 32) if not run.quick else (8,)
    source = Prompts(run, model, 16)
    node = Node(model, run.threads)
    run.machine.running.append(node.process.pid)

    def ours(count):
        return node.load("--dataset-path", written(source.take(count)), "--num-prompts", count,
                         "--output-len", tokens, "--ignore-eos")["output_throughput"]
    calls = {"ours, 1": lambda: ours(1)}
    for count in counts:
        calls[f"ours, {count}"] = lambda count=count: ours(count)
        for setting in MANY_STREAMS:
            calls[f"{setting}, {count}"] = lambda count=count, setting=setting: run.peer.call(
                "serve", model=model, threads=run.threads, setting=setting, tokens=tokens,
                prompts=source.take(count))
    try:
        rounds = alternate(run, calls, entry["bytes"], run.threads)
    finally:
        run.machine.running.remove(node.process.pid)
        stop(node)
    for count in counts:
        line = result("d", f"{count} streams of {tokens} through a node, {SMALL} Q4_1", rounds,
                      f"ours, {count}", [f"{name}, {count}" for name in MANY_STREAMS],
                      model=f"{SMALL}-Q4_1", streams=count, threads=run.threads,
                      notes=["peer without a server"])
        line["ours_over_one_stream"] = line["ours"] / rounds.median("ours, 1")
        yield line


class Services:
    """A node of ours and the peer's servers with one model, for as long as a row lasts."""

    def __init__(self, run, model, streams):
        self.run = run
        self.node = Node(model, run.threads)
        self.servers, self.missing = peer_servers(run, model, streams)
        self.all = [self.node, *self.servers.values()]

    def __enter__(self):
        self.run.machine.running += [one.process.pid for one in self.all]
        return self

    def __exit__(self, *_failure):
        for one in self.all:
            self.run.machine.running.remove(one.process.pid)
            stop(one)


def row_e(run):
    """Time to first token of prompts of 128 tokens with 16 to make, one client and eight at once;
    the median over requests. The last of eight is what the unluckiest waits."""
    requests, tokens = 8, 16
    for form in ("Q4_1", "Q4_0") if not run.quick else ("Q4_1",):
        entry = run.models[f"{SMALL}-{form}"]
        source = Prompts(run, entry["path"], 128)
        with Services(run, entry["path"], requests) as services:
            def ours(at_once):
                report = services.node.load(
                    "--dataset-path", written(source.take(requests)), "--num-prompts", requests,
                    "--max-concurrency", at_once, "--output-len", tokens, "--ignore-eos")
                if report["total_input_tokens"] != requests * 128:
                    raise RuntimeError("the engines count a prompt's tokens differently")
                return {"median": report["median_ttft_ms"], "p99": report["p99_ttft_ms"]}

            def theirs(server, at_once):
                first = [one[0] for one in server.load(source.take(requests), at_once, tokens)]
                return {"median": statistics.median(first), "p99": max(first)}
            calls = {}
            for at_once in (1, requests):
                calls[f"ours, {at_once}"] = lambda n=at_once: ours(n)
                for name, server in services.servers.items():
                    calls[f"{name}, {at_once}"] = lambda s=server, n=at_once: theirs(s, n)
            rounds = alternate(run, calls, entry["bytes"], run.threads)
            for at_once, figure in ((1, "median"), (requests, "median"), (requests, "p99")):
                peers = [f"{name}, {at_once}, {figure}" for name in services.servers]
                who = "1 client" if at_once == 1 else "8 clients"
                who += ", the last" if figure == "p99" else ""
                notes = [f"{name} {rounds.median(f'{name}, {at_once}, {figure}'):.0f} ms"
                         for name in services.servers]
                notes += [f"no {name}: {why}" for name, why in services.missing.items()]
                yield result("e", f"TTFT of 128 tokens, {who}, {SMALL} {form}", rounds,
                             f"ours, {at_once}, {figure}", peers, unit="ms", lower=True,
                             notes=notes, model=f"{SMALL}-{form}", threads=run.threads)


def row_f(run):
    """What streaming through a service adds to the engine's step at the same depth: (mean time
    per output token - step) / step, and how even the gaps are."""
    entry = run.models[f"{SMALL}-Q4_1"]
    model, depth, tokens = entry["path"], 16, 128
    source = Prompts(run, model, depth)

    def gaps(arrivals):
        between = sorted(b - a for a, b in zip(arrivals, arrivals[1:]))
        return {"tpot": statistics.mean(between), "p50": statistics.median(between),
                "p99": between[min(len(between) - 1, int(0.99 * len(between)))]}
    with Services(run, model, 1) as services:
        def ours():
            report = services.node.load("--dataset-path", written(source.take(1)), "--num-prompts",
                                        1, "--output-len", tokens, "--ignore-eos")
            return {"tpot": report["mean_tpot_ms"], "p50": report["median_itl_ms"],
                    "p99": report["p99_itl_ms"]}
        calls = {"step": lambda: 1e3 / bench(
            "--model", model, "--threads", run.threads, "--prompt", 0, "--generate", tokens,
            "--depth", depth, "--repetitions", 1)[f"tg{tokens}_tok_s"], "ours": ours}
        calls["peer step"] = lambda: 1e3 / run.peer.call(
            "generate", model=model, threads=run.threads, setting="flash attention", tokens=tokens,
            depth=depth)
        for name, server in services.servers.items():
            calls[name] = lambda server=server: gaps(server.stream(source.take(1)[0], tokens))
        rounds = alternate(run, calls, entry["bytes"], run.threads)
        names = {"ours": "step", **dict.fromkeys(services.servers, "peer step")}
        for name, step in names.items():
            taxes = [(one - base) / base * 100
                     for one, base in zip(rounds.samples[f"{name}, tpot"], rounds.samples[step])]
            rounds.samples[f"{name}, tax"] = taxes
            rounds.samples[f"{name}, p99/p50"] = [
                high / low for high, low in zip(rounds.samples[f"{name}, p99"],
                                                rounds.samples[f"{name}, p50"])]
        for figure, what, unit in (("tax", "streamed time a token over the step", "%"),
                                   ("p99/p50", "ITL p99 / p50", "x")):
            notes = [f"{name} {rounds.median(f'{name}, {figure}'):.2f}"
                     for name in services.servers]
            if figure == "tax":
                notes.insert(0, f"step {rounds.median('step'):.2f} ms, peer's "
                                f"{rounds.median('peer step'):.2f} ms")
            yield result("f", f"{what}, {SMALL} Q4_1", rounds, f"ours, {figure}",
                         [f"{name}, {figure}" for name in services.servers], unit=unit, lower=True,
                         notes=notes, model=f"{SMALL}-Q4_1", threads=run.threads)


def run_once(command, environment=None):
    """Starts a program: milliseconds to its first byte on stdout, its peak memory (VmHWM, in MB of
    10^6 bytes, of file pages too), and the last line of its stderr."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
                                   env={**os.environ, **(environment or {})})
        first = process.stdout.read(1)
        ms = (time.monotonic() - began) * 1e3
        process.stdout.read()
        _pid, status, used = os.wait4(process.pid, 0)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or not first:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {said[-500:]}")
    return {"ms": ms, "mb": used.ru_maxrss * 1024 / 1e6}, began, said


def row_g(run):
    """A process from its start to its first token, pages warm, and the most memory it had."""
    prompt = "The capital of France is"
    script = str(pathlib.Path(__file__).with_name("first_token.py"))
    for name in (f"{SMALL}-Q4_1", f"{BIG}-Q4_0") if not run.quick else (f"{SMALL}-Q4_1",):
        model, threads = run.models[name]["path"], str(run.threads)

        def python(model=model):
            figures, began, said = run_once([run.python, script, model, threads, prompt])
            imported = (float(said.split()[-1]) - began) * 1e3
            return {**figures, "ms less imports": figures["ms"] - imported}
        calls = {
            "ours": lambda model=model: run_once(
                ["build/release/sluice", "complete", "--model", model, "--threads", threads,
                 "--max-tokens", "1", "--temperature", "0", "--ignore-eos", "--prompt",
                 prompt])[0],
            "python": python}
        peers, less = ["python, ms"], "python, ms less imports"
        memory = ["python, mb"]
        if run.tools:
            # It has no option for threads and would take four.
            calls["llama-simple"] = lambda model=model: run_once(
                [str(run.tools / "llama-simple"), "-m", model, "-n", "1", prompt],
                {"OMP_THREAD_LIMIT": threads})[0]
            peers.append("llama-simple, ms")
            memory.append("llama-simple, mb")
        rounds = alternate(run, calls, run.models[name]["bytes"], run.threads)
        for what, unit, figure, those in (("process start to first token", "ms", "ms", peers),
                                          ("peak memory of it", "MB", "mb", memory)):
            notes = [f"{one.removesuffix(', ' + figure)} {rounds.median(one):.0f}"
                     for one in those]
            if figure == "ms":
                notes.append(f"{less} {rounds.median(less):.0f}")
            yield result("g", f"{what}, {name}", rounds, f"ours, {figure}", those, unit=unit,
                         lower=True, notes=notes, model=name, threads=run.threads)
