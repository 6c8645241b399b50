"""Rows e to g of bench/compare-llamacpp.sh, and row d's second half: through a node."""
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from engine_rows import BIG, MANY_STREAMS, SMALL, result, streams_line
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


def load(run, count, tokens=64):
    """A load of short prompts, through a node; the peer's through its batched API, without a
    server."""
    entry = run.models[f"{SMALL}-Q4_1"]
    model, source = entry["path"], Prompts(run, entry["path"], 16)
    node = Node(model, run.threads)
    run.machine.running.append(node)

    def ours(streams):
        return node.load("--dataset-path", written(source.take(streams)), "--num-prompts", streams,
                         "--output-len", tokens, "--ignore-eos")["output_throughput"]
    calls = {"ours, 1": lambda: ours(1), f"ours, {count}": lambda: ours(count)}
    for setting in MANY_STREAMS:
        calls[f"{setting}, {count}"] = lambda setting=setting: run.peer.call(
            "serve", model=model, threads=run.threads, setting=setting, tokens=tokens,
            prompts=source.take(count))
    try:
        rounds = alternate(run, calls, entry["bytes"], run.threads)
    finally:
        run.machine.running.remove(node)
        stop(node)
    return [streams_line(rounds, f"{count} streams of {tokens} through a node, {SMALL} Q4_1", count,
                         model=f"{SMALL}-Q4_1", threads=run.threads,
                         notes=["peer without a server"])]


def row_d(run):
    for count in (8, 32) if not run.quick else (8,):
        yield f"{count} streams through a node", lambda: load(run, count)


class Services:
    """A node of ours and the peer's servers with one model, for as long as a row lasts."""

    def __init__(self, run, model, streams):
        self.run = run
        self.node = Node(model, run.threads)
        self.servers, self.missing = peer_servers(run, model, streams)
        self.all = [self.node, *self.servers.values()]

    def __enter__(self):
        self.run.machine.running += self.all
        return self

    def __exit__(self, *_failure):
        for one in self.all:
            self.run.machine.running.remove(one)
            stop(one)


def first_tokens(run, services, source, entry, at_once, what, requests=8, tokens=16):
    """Time to first token of prompts of 128 tokens with 16 to make, over 8 requests, so many at
    once: the median, and of several at once the last, which is what the unluckiest waits."""
    def ours():
        report = services.node.load(
            "--dataset-path", written(source.take(requests)), "--num-prompts", requests,
            "--max-concurrency", at_once, "--output-len", tokens, "--ignore-eos")
        if report["total_input_tokens"] != requests * 128:
            raise RuntimeError("the engines count a prompt's tokens differently")
        # p99 interpolates: of 8 it is the last but for a fifteenth of the last gap.
        return {"median": report["median_ttft_ms"], "last": report["p99_ttft_ms"]}

    def theirs(server):
        first = [one[0] for one in server.load(source.take(requests), at_once, tokens)]
        return {"median": statistics.median(first), "last": max(first)}
    calls = {"ours": ours}
    for name, server in services.servers.items():
        calls[name] = lambda server=server: theirs(server)
    rounds = alternate(run, calls, entry["bytes"], run.threads)
    lines = []
    for figure in ("median",) if at_once == 1 else ("median", "last"):
        peers = [f"{name}, {figure}" for name in services.servers]
        notes = [f"{name} {rounds.median(f'{name}, {figure}'):.0f} ms"
                 for name in services.servers]
        notes += [f"no {name}: {why}" for name, why in services.missing.items()]
        lines.append(result("e", f"{what}, {figure}", rounds, f"ours, {figure}", peers, unit="ms",
                            lower=True, notes=notes, threads=run.threads,
                            model=pathlib.Path(entry["path"]).stem))
    return lines


def row_e(run):
    for form in ("Q4_1", "Q4_0") if not run.quick else ("Q4_1",):
        entry = run.models[f"{SMALL}-{form}"]
        source = Prompts(run, entry["path"], 128)
        with Services(run, entry["path"], 8) as services:
            for at_once, who in ((1, "1 client"), (8, "8 clients")):
                what = f"TTFT of 128 tokens, {who}, {SMALL} {form}"
                yield what, lambda: first_tokens(run, services, source, entry, at_once, what)


def gaps(arrivals):
    """What a stream's client sees of its pace, in ms."""
    between = sorted(b - a for a, b in zip(arrivals, arrivals[1:]))
    return {"tpot": statistics.mean(between), "p50": statistics.median(between),
            "p99": between[min(len(between) - 1, int(0.99 * len(between)))]}


def tax(run, services, entry, depth=16, tokens=128):
    """What streaming through a service adds to the engine's step at the same depth: (mean time per
    output token - step) / step, and how even the gaps are, and an engine's steps alone."""
    model, source = entry["path"], Prompts(run, entry["path"], depth)

    def ours():
        report = services.node.load("--dataset-path", written(source.take(1)), "--num-prompts", 1,
                                    "--output-len", tokens, "--ignore-eos")
        return {"tpot": report["mean_tpot_ms"], "p50": report["median_itl_ms"],
                "p99": report["p99_itl_ms"]}

    def step():
        alone = bench("--model", model, "--threads", run.threads, "--prompt", 0, "--generate",
                      tokens, "--depth", depth, "--repetitions", 1)
        return {"mean": 1e3 / alone[f"tg{tokens}_tok_s"],
                "p99/p50": alone["step_p99_ms"] / alone["step_p50_ms"]}
    calls = {"step": step, "ours": ours}
    calls["peer step"] = lambda: 1e3 / run.peer.call(
        "generate", model=model, threads=run.threads, setting="flash attention", tokens=tokens,
        depth=depth)
    for name, server in services.servers.items():
        calls[name] = lambda server=server: gaps(server.stream(source.take(1)[0], tokens))
    rounds = alternate(run, calls, entry["bytes"], run.threads)
    samples = rounds.samples
    steps = {"ours": "step, mean", **dict.fromkeys(services.servers, "peer step")}
    for name, step in steps.items():
        samples[f"{name}, tax"] = [(one - base) / base * 100 for one, base in
                                   zip(samples[f"{name}, tpot"], samples[step])]
        samples[f"{name}, p99/p50"] = [high / low for high, low in
                                       zip(samples[f"{name}, p99"], samples[f"{name}, p50"])]
    lines = []
    for figure, what, unit in (("tax", "streamed time a token over the step", "%"),
                               ("p99/p50", "ITL p99 / p50", "x")):
        notes = [f"{name} {rounds.median(f'{name}, {figure}'):.2f}" for name in services.servers]
        if figure == "tax":
            notes.insert(0, f"step {rounds.median('step, mean'):.2f} ms, peer's "
                            f"{rounds.median('peer step'):.2f} ms")
        else:
            notes.insert(0, f"the steps alone {rounds.median('step, p99/p50'):.2f}")
        lines.append(result("f", f"{what}, {SMALL} Q4_1", rounds, f"ours, {figure}",
                            [f"{name}, {figure}" for name in services.servers], unit=unit,
                            lower=True, notes=notes, model=f"{SMALL}-Q4_1", threads=run.threads))
    return lines


def row_f(run):
    entry = run.models[f"{SMALL}-Q4_1"]
    with Services(run, entry["path"], 1) as services:
        yield "what a service adds to a step", lambda: tax(run, services, entry)


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


def start(run, name, prompt="The capital of France is"):
    """A process from its start to its first token, pages warm, and the most memory it had; and a
    model's first start of all, which has weights to pack."""
    model, threads = run.models[name]["path"], str(run.threads)
    script = str(pathlib.Path(__file__).with_name("first_token.py"))

    def python():
        figures, began, said = run_once([run.python, script, model, threads, prompt])
        imports = (float(said.split()[-1]) - began) * 1e3
        return {**figures, "ms less imports": figures["ms"] - imports}

    def ours(cache):
        return run_once(
            ["build/release/sluice", "complete", "--model", model, "--threads", threads,
             "--max-tokens", "1", "--temperature", "0", "--ignore-eos", "--prompt", prompt],
            {"XDG_CACHE_HOME": cache})[0]

    def first():
        with tempfile.TemporaryDirectory(dir="build") as cache:
            return ours(os.path.abspath(cache))
    cache = os.path.abspath("build/compare-llamacpp/cache")
    ours(cache)
    calls = {"ours": lambda: ours(cache), "first": first, "python": python}
    if run.tools:
        # It has no option for threads and would take four.
        calls["llama-simple"] = lambda: run_once(
            [str(run.tools / "llama-simple"), "-m", model, "-n", "1", prompt],
            {"OMP_THREAD_LIMIT": threads})[0]
    rounds = alternate(run, calls, run.models[name]["bytes"], run.threads)
    lines = []
    others = [peer for peer in calls if peer not in ("ours", "first")]
    for what, unit, who in (("process start to first token", "ms", "ours"),
                            ("a model's first start to first token", "ms", "first"),
                            ("peak memory of it", "MB", "ours")):
        figure = unit.lower()
        peers = [f"{peer}, {figure}" for peer in others]
        notes = [f"{peer} {rounds.median(f'{peer}, {figure}'):.0f}" for peer in others]
        if unit == "ms":
            notes.append(f"python less imports {rounds.median('python, ms less imports'):.0f}")
        lines.append(result("g", f"{what}, {name}", rounds, f"{who}, {figure}", peers, unit=unit,
                            lower=True, notes=notes, model=name, threads=run.threads))
    return lines


def row_g(run):
    for name in (f"{SMALL}-Q4_1", f"{BIG}-Q4_0") if not run.quick else (f"{SMALL}-Q4_1",):
        yield f"start, {name}", lambda: start(run, name)
