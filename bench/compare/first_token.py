"""The smallest program in Python that takes a prompt to a token with llama.cpp: what row g of
bench/compare-llamacpp.sh sets beside `sluice complete --max-tokens 1`. Prints the token's text, and
on stderr when the imports were done (seconds of CLOCK_MONOTONIC).

    first_token.py MODEL THREADS PROMPT
"""
import ctypes
import sys
import time

import llama_cpp

imported = time.monotonic()

silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(
    sys.argv[1].encode(), llama_cpp.llama_model_default_params())
vocab = llama_cpp.llama_model_get_vocab(model)
text = sys.argv[3].encode()
# A byte may become a token, and a space three.
ids = (llama_cpp.llama_token * (3 * len(text) + 8))()
count = llama_cpp.llama_tokenize(vocab, text, len(text), ids, len(ids), True, False)
params = llama_cpp.llama_context_default_params()
params.n_ctx = 256
params.n_threads = params.n_threads_batch = int(sys.argv[2])
context = llama_cpp.llama_init_from_model(model, params)
llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, count))
logits = llama_cpp.llama_get_logits_ith(context, -1)
best = max(range(llama_cpp.llama_vocab_n_tokens(vocab)), key=logits.__getitem__)
piece = ctypes.create_string_buffer(64)
length = llama_cpp.llama_token_to_piece(vocab, best, piece, len(piece), 0, False)
sys.stdout.buffer.write(piece.raw[:length])
sys.stdout.buffer.flush()
print(imported, file=sys.stderr)
