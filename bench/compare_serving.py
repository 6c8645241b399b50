"""llama.cpp's side of bench/compare-serving.sh: a batch of streams through its own batched API.

llama-cpp-python's server runs one request at a time, so this drives llama_decode with all streams
in one batch: each prompt is read, then every step brings each stream one token, the best one, until
each has as many as asked for. Prints a JSON object a setting.
"""
import argparse
import ctypes
import json
import time

import llama_cpp
import numpy

# What a user would try: attention fused or not, and one KV cache for all streams.
SETTINGS = {"plain": {"flash": 0, "unified": False},
            "flash attention": {"flash": 1, "unified": False},
            "flash attention, unified KV": {"flash": 1, "unified": True}}


def add(batch, token, position, stream, wanted):
    i = batch.n_tokens
    batch.token[i], batch.pos[i] = token, position
    batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
    batch.logits[i] = wanted
    batch.n_tokens += 1


def best(context, row, vocabulary):
    logits = llama_cpp.llama_get_logits_ith(context, row)
    return int(numpy.argmax(numpy.ctypeslib.as_array(logits, shape=(vocabulary,))))


def run(model, prompts, tokens, threads, flash, unified):
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = len(prompts) * (max(map(len, prompts)) + tokens + 32)
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = len(prompts)
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = flash
    params.kv_unified = unified
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
    began = time.perf_counter()
    last = [0] * len(prompts)
    for stream, prompt in enumerate(prompts):
        batch.n_tokens = 0
        for position, token in enumerate(prompt):
            add(batch, token, position, stream, position == len(prompt) - 1)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode refused a prompt")
        last[stream] = best(context, batch.n_tokens - 1, vocabulary)
    for step in range(tokens - 1):
        batch.n_tokens = 0
        for stream, prompt in enumerate(prompts):
            add(batch, last[stream], len(prompt) + step, stream, True)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode refused a step")
        last = [best(context, row, vocabulary) for row in range(len(prompts))]
    seconds = time.perf_counter() - began
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return len(prompts) * tokens / seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        options.model.encode(), llama_cpp.llama_model_default_params())
    vocab = llama_cpp.llama_model_get_vocab(model)
    prompts = []
    with open(options.prompts, "rb") as file:
        for line in file.read().splitlines()[:options.streams]:
            ids = (llama_cpp.llama_token * 4096)()
            count = llama_cpp.llama_tokenize(vocab, line, len(line), ids, 4096, False, False)
            prompts.append(list(ids[:count]))
    for name, setting in SETTINGS.items():
        run(model, prompts, 2, options.threads, **setting)  # not counted: pages, buffers
        rate = run(model, prompts, options.tokens, options.threads, **setting)
        print(json.dumps({"setting": name, "output_throughput": rate}), flush=True)


if __name__ == "__main__":
    main()
