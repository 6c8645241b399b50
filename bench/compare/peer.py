"""llama.cpp's side of bench/compare-llamacpp.sh, by its own C API.

Asked as calls.py says. The work of a step is one call of llama_decode and an argmax, so Python's
part is some tens of microseconds. Keeps one model loaded. KV is f16, weights are repacked where
llama.cpp does so by default.
"""
import ctypes
import time

import calls
import llama_cpp
import numpy

# Where others run on the same processors, llama.cpp's threads spin for each other and a step takes
# seconds. Such a measurement ends early, with the rate so far; its round does not count.
SECONDS_MAX = 30

FLASH = {"plain": 0, "flash attention": 1, "flash attention, unified KV": 1}


class Engine:
    def __init__(self):
        self.path, self.model = None, None

    def load(self, path):
        if path == self.path:
            return
        if self.model:
            llama_cpp.llama_model_free(self.model)
        self.path = path
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text):
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])


class Streams:
    """A context for some streams, and a batch to fill."""

    def __init__(self, engine, streams, context_tokens, threads, setting, ubatch=512):
        params = llama_cpp.llama_context_default_params()
        # A stream's share is padded to 256 tokens by llama.cpp.
        params.n_ctx = streams * ((context_tokens + 255) // 256 * 256)
        params.n_batch = max(512, ubatch)
        params.n_ubatch = ubatch
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH[setting]
        params.kv_unified = setting.endswith("unified KV")
        params.no_perf = True
        self.engine = engine
        self.context = llama_cpp.llama_init_from_model(engine.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {streams} streams")
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def add(self, token, position, stream, wanted):
        batch, i = self.batch, self.batch.n_tokens
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
        batch.logits[i] = wanted
        batch.n_tokens += 1

    def decode(self):
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode refused a batch")

    def best(self, row):
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        view = numpy.ctypeslib.as_array(logits, shape=(self.engine.vocabulary,))
        return int(numpy.argmax(view))

    def read(self, stream, prompt, sample):
        """Reads a prompt; its best next token if `sample`."""
        for first in range(0, len(prompt), 512):
            self.batch.n_tokens = 0
            for i, token in enumerate(prompt[first:first + 512], first):
                self.add(token, i, stream, sample and i + 1 == len(prompt))
            self.decode()
        if sample:
            return self.best(self.batch.n_tokens - 1)
        llama_cpp.llama_synchronize(self.context)
        return None

    def step(self, last, positions):
        """One token more for each stream."""
        self.batch.n_tokens = 0
        for stream, token in enumerate(last):
            self.add(token, positions[stream], stream, True)
        self.decode()
        return [self.best(row) for row in range(len(last))]


def some_tokens(count, vocabulary):
    """Any tokens do: the work does not depend on them."""
    return [int(t) for t in numpy.random.default_rng(1).integers(3, vocabulary, count)]


def prompt(engine, threads, setting, tokens, ubatch=512):
    """Tokens a second of reading one prompt, to its first token."""
    streams = Streams(engine, 1, tokens + 1, threads, setting, ubatch)
    ids = some_tokens(tokens, engine.vocabulary)
    seconds = 0.0
    for _ in range(2):  # the first is not counted: pages, buffers
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(streams.context), True)
        began = time.perf_counter()
        streams.read(0, ids, True)
        seconds = time.perf_counter() - began
    streams.close()
    return tokens / seconds


def generate(engine, threads, setting, tokens, streams=1, depth=0):
    """Tokens a second of all streams together, each after `depth` tokens."""
    context = Streams(engine, streams, depth + tokens + 1, threads, setting)
    memory = llama_cpp.llama_get_memory(context.context)
    ids = some_tokens(depth + 1, engine.vocabulary)
    rate = 0.0
    for steps in (min(tokens, 8), tokens):  # the first is not counted
        llama_cpp.llama_memory_clear(memory, True)
        for stream in range(streams):
            context.read(stream, ids[:depth], False)
        last = [ids[depth]] * streams
        began = time.perf_counter()
        for step in range(steps):
            last = context.step(last, [depth + step] * streams)
            seconds = time.perf_counter() - began
            if seconds > SECONDS_MAX:
                break
        rate = streams * (step + 1) / seconds
    context.close()
    return rate


def serve(engine, threads, setting, tokens, prompts):
    """Tokens a second of a load: all prompts are there at once, each gets so many tokens, and the
    time to read them counts, as it does for a service."""
    ids = [engine.tokenize(text) for text in prompts]
    context = Streams(engine, len(ids), max(map(len, ids)) + tokens, threads, setting)
    began = time.perf_counter()
    last = [context.read(stream, one, True) for stream, one in enumerate(ids)]
    seconds, made = time.perf_counter() - began, 1
    while made < tokens and seconds < SECONDS_MAX:
        last = context.step(last, [len(one) + made - 1 for one in ids])
        seconds, made = time.perf_counter() - began, made + 1
    context.close()
    return len(ids) * made / seconds


def count_tokens(engine, texts):
    return [len(engine.tokenize(text)) for text in texts]


def describe(_engine):
    return {"version": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode().strip()}


ASKED = {"prompt": prompt, "generate": generate, "serve": serve, "count_tokens": count_tokens,
         "describe": describe}


def main():
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    engine = Engine()

    def call(what, arguments):
        if "model" in arguments:
            engine.load(arguments.pop("model"))
        return ASKED[what](engine, **arguments)

    calls.answer(call)


if __name__ == "__main__":
    main()
