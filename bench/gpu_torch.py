#!/usr/bin/env python3
"""PyTorch and transformers generating with random weights of a shape, as bench/gpu.py asks for it:
a static cache, decoding compiled (torch.compile, CUDA graphs on a GPU), bfloat16. Prints one JSON
object: tokens a second of all streams together, the best of three.

Usage: bench/gpu_torch.py [--shape llama-3.1-8b|small] [--streams N] [--depth N] [--tokens N]
                          [--device cpu]
"""

import argparse
import json
import time

import torch
import transformers

from gpu_checkpoint import SHAPES


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--depth", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()

    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    config = transformers.LlamaConfig(**SHAPES[options.shape], max_position_embeddings=16384,
                                      attn_implementation="sdpa")
    with torch.device(options.device):
        model = transformers.LlamaForCausalLM(config).eval()
    length = options.depth + options.tokens + 1
    cache = transformers.StaticCache(config=config, max_batch_size=options.streams,
                                     max_cache_len=length, device=options.device,
                                     dtype=torch.bfloat16)
    mode = "reduce-overhead" if options.device == "cuda" else "default"
    decode = torch.compile(model, mode=mode, fullgraph=True)

    def step(call, ids, position):
        logits = call(input_ids=ids, past_key_values=cache, cache_position=position,
                      use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True).clone()

    def wait():
        if options.device == "cuda":
            torch.cuda.synchronize()

    def timed():
        cache.reset()
        ids = torch.randint(0, config.vocab_size, (options.streams, options.depth),
                            device=options.device)
        token = step(model, ids, torch.arange(options.depth, device=options.device))
        wait()
        start = time.perf_counter()
        for at in range(options.depth, options.depth + options.tokens):
            token = step(decode, token, torch.tensor([at], device=options.device))
        wait()
        return options.streams * options.tokens / (time.perf_counter() - start)

    with torch.inference_mode():
        timed()  # compiles
        rate = max(timed() for _ in range(3))
    print(json.dumps({"tok_s": rate, "streams": options.streams, "depth": options.depth,
                      "torch": torch.__version__, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
