#!/usr/bin/env python3
"""Writes a Hugging Face folder of the shape of Llama 3.1 8B, or a small one, with random bfloat16
weights of about 0.01: for times that depend on shapes alone. Its tokenizer has a token for each
byte, and fills the vocabulary up with words that no text has. Needs Python's own library.

Usage: bench/gpu_checkpoint.py FOLDER [--shape llama-3.1-8b|small]
"""

import argparse
import json
import pathlib
import random
import struct

SHAPES = {
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024},
}


def tensors(shape):
    """Names and shapes, in the file's order."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        for name, size in (("input_layernorm", (hidden,)),
                           ("self_attn.q_proj", (hidden, hidden)),
                           ("self_attn.k_proj", (keys, hidden)),
                           ("self_attn.v_proj", (keys, hidden)),
                           ("self_attn.o_proj", (hidden, hidden)),
                           ("post_attention_layernorm", (hidden,)),
                           ("mlp.gate_proj", (inner, hidden)),
                           ("mlp.up_proj", (inner, hidden)),
                           ("mlp.down_proj", (hidden, inner))):
            yield f"model.layers.{layer}.{name}.weight", size
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape["vocab_size"], hidden)


def byte_names():
    """The characters by which byte-level vocabularies write the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def tokenizer(size):
    words = byte_names()
    words += [f"<filler {i}>" for i in range(size - 2 - len(words))]
    words += ["<begin>", "<end>"]
    special = [{"id": i, "content": words[i], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True}
               for i in (size - 2, size - 1)]
    return {"version": "1.0", "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False,
                              "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                        "use_regex": True},
            "post_processor": None,
            "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)},
                      "merges": []}}


def write(folder, shape):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
              "tie_word_embeddings": False, "torch_dtype": "bfloat16",
              "bos_token_id": shape["vocab_size"] - 2, "eos_token_id": shape["vocab_size"] - 1,
              **shape}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(shape["vocab_size"])),
                                           encoding="utf-8")
    header, end = {}, 0
    for name, size in tensors(shape):
        begin, end = end, end + 2 * size[0] * (size[1] if len(size) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # High bytes are a sign and an exponent of about 0.01, low ones anything.
    block = bytearray(random.Random(1).randbytes(1 << 22))
    block[1::2] = bytes(0x3C | high & 0x80 for high in block[1::2])
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for left in range(end, 0, -len(block)):
            file.write(block[:min(left, len(block))])
    return end


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    options = parser.parse_args()
    size = write(options.folder, SHAPES[options.shape])
    print(f"{size / 1e9:.1f} GB in {options.folder}")


if __name__ == "__main__":
    main()
