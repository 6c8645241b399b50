"""Rows a to d and h of bench/compare-llamacpp.sh: the engines alone, through their own APIs."""
import statistics

from measure import Peer, alternate, bandwidth, bench, say

ONE_STREAM = ("plain", "flash attention")
MANY_STREAMS = ("plain", "flash attention", "flash attention, unified KV")
SMALL, BIG = "SmolLM2-135M-Instruct", "random-1.1B"

DECODE = [("Q4_1", 1), ("Q4_1", None), ("Q4_0", 1), ("Q4_0", None), ("Q8_0", None),
          ("Q4_K_M", None), ("F16", None), ("BF16", None)]
PROMPT = [(SMALL, "Q4_1"), (SMALL, "Q4_0"), (SMALL, "Q8_0"), (SMALL, "Q4_K_M"), (SMALL, "F16"),
          (SMALL, "BF16"), (BIG, "Q4_0")]


def models(rows):
    """The model files that these rows need."""
    names = set()
    if "a" in rows:
        names |= {f"{SMALL}-{form}" for form, _threads in DECODE}
    if "b" in rows:
        names.add(f"{BIG}-Q4_0")
    if "c" in rows:
        names |= {f"{family}-{form}" for family, form in PROMPT}
    if "d" in rows:
        names |= {f"{SMALL}-Q4_1", f"{SMALL}-Q4_0"}
    if "h" in rows:
        names.add(f"{SMALL}-BF16")
    return names


def result(row, what, rounds, ours, peers, unit="tok/s", lower=False, **more):
    """A line of the table: the median of `ours` beside the best of the peer's settings, the highest
    or, if `lower` is better, the lowest."""
    peer = rounds.best(peers, lower) if peers else None
    line = {"row": row, "what": what, "unit": unit, "ours": rounds.median(ours),
            "peer": rounds.median(peer) if peer else None, "peer_setting": peer,
            "better": "lower" if lower else "higher"}
    line["ours_over_peer"] = line["ours"] / line["peer"] if peer else None
    return {**line, **more, **rounds.summary()}


def generated(model, threads, tokens, **options):
    """A call that measures ours: tokens a second, all streams together."""
    extra = [text for name, value in options.items() for text in (f"--{name}", value)]
    return lambda: bench("--model", model, "--threads", threads, "--prompt", 0, "--generate",
                         tokens, "--repetitions", 1, *extra)[f"tg{tokens}_tok_s"]


def decode(run, row, family, form, threads):
    """One stream beside the peer's, and beside one read of the weights a token."""
    model = run.models[f"{family}-{form}"]["path"]
    tokens = run.tokens
    # Not counted; says how much is read for a token.
    size = bench("--model", model, "--threads", threads, "--prompt", 0, "--generate", tokens,
                 "--repetitions", 1)["bytes_per_token"]
    calls = {"ours": generated(model, threads, tokens)}
    for setting in ONE_STREAM:
        calls[setting] = lambda setting=setting: run.peer.call(
            "generate", model=model, threads=threads, setting=setting, tokens=tokens)
    rounds = alternate(run, calls, size, threads)
    limits = [rate * 1e9 / size for rate in rounds.bandwidths]
    shares = [ours / limit for ours, limit in zip(rounds.samples["ours"], limits)]
    plural = "s" if threads > 1 else ""
    return [result(row, f"tg{tokens}, {family} {form}, {threads} thread{plural}", rounds, "ours",
                   ONE_STREAM, limit=statistics.median(limits), limit_of="read bandwidth",
                   ours_over_limit=statistics.median(shares), bytes_per_token=size,
                   threads=threads, model=f"{family}-{form}")]


# A row gives the lines of the table one measurement at a time: what is measured, and a function
# that does it and gives the lines.


def row_a(run):
    wanted = DECODE if not run.quick else [("Q4_1", None), ("Q4_0", None)]
    for form, threads in wanted:
        if threads is None or threads < run.threads:
            count = threads or run.threads
            yield f"decode of {form}, {count} threads", lambda: decode(
                run, "a", SMALL, form, count)


def row_b(run):
    yield "decode of 1.1B", lambda: decode(run, "b", BIG, "Q4_0", run.threads)


def peaks(run):
    """Gop/s by kind of values, of the threads that measure."""
    found = bench("--peak", "--threads", run.threads)
    return {kind: found[f"{kind}_gop_s"] for kind in ("f32", "bf16", "int8")
            if f"{kind}_gop_s" in found}


def read_prompt(run, family, form):
    """A prompt, beside what the processor multiplies and adds out of registers: int8 for quantized
    weights, bf16 for those in BF16, f32 for those in F16 and where it has no such instructions.
    Only the layers' products are counted, the attention's are not."""
    entry, tokens = run.models[f"{family}-{form}"], run.prompt
    model, ops_per_token = entry["path"], 2 * entry["layer_weights"]
    calls = {"ours": lambda: bench("--model", model, "--threads", run.threads, "--prompt", tokens,
                                   "--generate", 0, "--repetitions", 1)[f"pp{tokens}_tok_s"]}
    for setting in ONE_STREAM:
        calls[setting] = lambda setting=setting: run.peer.call(
            "prompt", model=model, threads=run.threads, setting=setting, tokens=tokens)
    calls["peak"] = lambda: peaks(run)
    rounds = alternate(run, calls, entry["bytes"], run.threads)
    # A peak is what the processor can do: the most that was seen.
    best = {kind: max(rounds.samples[f"peak, {kind}"]) for kind in ("f32", "bf16", "int8")
            if f"peak, {kind}" in rounds.samples}
    wanted = {"F16": "f32", "BF16": "bf16"}.get(form, "int8")
    kind = wanted if wanted in best else "f32"
    line = result("c", f"pp{tokens}, {family} {form}", rounds, "ours", ONE_STREAM,
                  peaks_gop_s=best, ops_per_token=ops_per_token, threads=run.threads,
                  model=f"{family}-{form}")
    line["ours_gop_s"] = line["ours"] * ops_per_token / 1e9
    line["peer_gop_s"] = line["peer"] * ops_per_token / 1e9
    if kind in best:
        line["limit"] = best[kind] * 1e9 / ops_per_token
        line["limit_of"] = f"{kind} peak, {best[kind]:.0f} Gop/s"
        line["ours_over_limit"] = line["ours"] / line["limit"]
    return [line]


def row_c(run):
    for family, form in PROMPT if not run.quick else [(SMALL, "Q4_1"), (SMALL, "F16")]:
        yield f"prompt, {family} {form}", lambda: read_prompt(run, family, form)


def streams_together(run, form, counts, tokens):
    """Streams that decode together, against one of ours and against the peer's best setting."""
    model = run.models[f"{SMALL}-{form}"]["path"]
    size = bench("--model", model, "--threads", run.threads, "--prompt", 0, "--generate", tokens,
                 "--repetitions", 1)["bytes_per_token"]
    calls = {"ours, 1": generated(model, run.threads, tokens)}
    for count in counts:
        calls[f"ours, {count}"] = generated(model, run.threads, tokens, streams=count)
        for setting in MANY_STREAMS:
            calls[f"{setting}, {count}"] = lambda count=count, setting=setting: run.peer.call(
                "generate", model=model, threads=run.threads, setting=setting, tokens=tokens,
                streams=count)
    rounds = alternate(run, calls, size, run.threads)
    return [streams_line(rounds, f"{count} streams, tg{tokens}, {SMALL} {form}", count,
                         model=f"{SMALL}-{form}", threads=run.threads) for count in counts]


def streams_line(rounds, what, count, **more):
    line = result("d", what, rounds, f"ours, {count}",
                  [f"{name}, {count}" for name in MANY_STREAMS], streams=count, **more)
    line["ours_over_one_stream"] = line["ours"] / rounds.median("ours, 1")
    return line


def row_d(run):
    for form in ("Q4_1", "Q4_0") if not run.quick else ("Q4_1",):
        # Apart, so that a round is short.
        for count in (8, 32) if not run.quick else (8,):
            yield f"{count} streams, {form}", lambda: streams_together(
                run, form, [count], 64 if not run.quick else 32)


def beside_vllm(run, count, tokens):
    """Streams that decode together in BF16. vLLM settles first; it and llama.cpp rest while others
    measure."""
    entry = run.models[f"{SMALL}-BF16"]
    vllm = Peer("vLLM", run.vllm, "vllm_peer.py", run.threads)
    calls = {"ours": generated(entry["path"], run.threads, tokens, streams=count),
             "not compiled": lambda: vllm.call("generate", streams=count, tokens=tokens)}
    run.machine.running.append(vllm)
    try:
        calls["not compiled"]()
        rounds = alternate(run, calls, entry["bytes"], run.threads)
    finally:
        run.machine.running.remove(vllm)
        vllm.close()
    return [result("h", f"{count} streams, tg{tokens}, {SMALL} BF16, vLLM", rounds, "ours",
                   ["not compiled"], streams=count, threads=run.threads, model=f"{SMALL}-BF16")]


def row_h(run):
    yield "8 streams beside vLLM", lambda: beside_vllm(run, 8, 64 if not run.quick else 32)


def warn_of_others(run):
    start = run.machine.now()
    rate = bandwidth(100_000_000, run.threads)
    say(f"bandwidth {rate:.1f} GB/s; others took {run.machine.others(start):.0%} of the processors")
