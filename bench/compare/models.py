"""The model files of bench/compare-llamacpp.sh, made where they are missing.

SmolLM2-135M comes as Q4_1; its other formats are made from that file by llama.cpp's own quantizer
(Q4_1 widened to F16, then the rest from F16), so both engines read the same bytes and nothing but
the first is downloaded. The 1.1B one has TinyLlama's shape and random weights from a seed. Both
steps give the same bytes every time. Run by the peer's Python (llama_cpp, gguf, numpy):

    models.py FOLDER NAME...     prints one JSON object: path and layer weights of each
"""
import json
import os
import pathlib
import sys

import gguf
import llama_cpp
import numpy

SMALL = "SmolLM2-135M-Instruct"
BIG = "random-1.1B"

# What llama-quantize makes under these names: Q4_K_M mixes formats, and where a row of 576 is no
# multiple of a K format's 256 it falls back to Q5_0, Q5_1 and Q8_0.
FILE_TYPES = {"F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
              "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
              "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
              "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
              "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def replace(target, make):
    """Makes a file beside its place and moves it there, so that no half of one is ever found."""
    half = target.with_suffix(".part")
    try:
        make(half)
        os.replace(half, target)
    finally:
        half.unlink(missing_ok=True)


def quantize(source, target, file_type):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.allow_requantize = True
    params.nthread = os.cpu_count()
    done = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if done != 0:
        raise RuntimeError(f"llama.cpp cannot make {target} from {source}")


# TinyLlama-1.1B: 22 layers, 2048 wide, 32 heads of 64, 4 of them keys, 5632 within, 32000 tokens.
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, WITHIN, VOCABULARY = 22, 2048, 32, 4, 64, 5632, 32000
SEED = 1


def write_random(path):
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_name("random weights in TinyLlama's shape")
    out.add_block_count(LAYERS)
    out.add_context_length(2048)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(WITHIN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_rope_dimension_count(HEAD_DIM)
    out.add_rope_freq_base(10000.0)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(VOCABULARY)
    out.add_file_type(llama_cpp.LLAMA_FTYPE_MOSTLY_F16)
    special = [(b"<unk>", gguf.TokenType.UNKNOWN), (b"<s>", gguf.TokenType.CONTROL),
               (b"</s>", gguf.TokenType.CONTROL)]
    tokens = special + [(f"<0x{byte:02X}>".encode(), gguf.TokenType.BYTE) for byte in range(256)]
    tokens += [(f"w{i}".encode(), gguf.TokenType.NORMAL) for i in range(len(tokens), VOCABULARY)]
    out.add_tokenizer_model("llama")
    out.add_token_list([token for token, _ in tokens])
    out.add_token_scores([-float(i) for i in range(VOCABULARY)])
    out.add_token_types([kind for _, kind in tokens])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    random = numpy.random.default_rng(SEED)

    def matrix(name, rows, columns):
        values = random.standard_normal((rows, columns), dtype=numpy.float32)
        out.add_tensor(name, (values * numpy.float32(0.02)).astype(numpy.float16))

    def gain(name):
        out.add_tensor(name, numpy.ones(WIDTH, dtype=numpy.float32))

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        gain(name + "attn_norm.weight")
        matrix(name + "attn_q.weight", HEADS * HEAD_DIM, WIDTH)
        matrix(name + "attn_k.weight", KV_HEADS * HEAD_DIM, WIDTH)
        matrix(name + "attn_v.weight", KV_HEADS * HEAD_DIM, WIDTH)
        matrix(name + "attn_output.weight", WIDTH, HEADS * HEAD_DIM)
        gain(name + "ffn_norm.weight")
        matrix(name + "ffn_gate.weight", WITHIN, WIDTH)
        matrix(name + "ffn_up.weight", WITHIN, WIDTH)
        matrix(name + "ffn_down.weight", WIDTH, WITHIN)
    gain("output_norm.weight")
    matrix("output.weight", VOCABULARY, WIDTH)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def provide(folder, name):
    """The path of `FAMILY-FORMAT`, made with what it is made from if it is missing."""
    target = folder / f"{name}.gguf"
    if target.exists():
        return target
    family, file_type = name.rsplit("-", 1)
    print(f"making {target}", file=sys.stderr, flush=True)
    if family == BIG:
        # 2.2 GB in F16, which nothing else needs.
        source = folder / f"{BIG}-F16.gguf"
        if file_type == "F16":
            replace(target, write_random)
            return target
        keep = source.exists()
        source = provide(folder, f"{BIG}-F16")
        replace(target, lambda half: quantize(source, half, file_type))
        if not keep:
            source.unlink()
        return target
    if file_type == "Q4_1":
        raise FileNotFoundError(f"{target}: run scripts/fetch-model.sh")
    source = provide(folder, f"{SMALL}-{'Q4_1' if file_type == 'F16' else 'F16'}")
    replace(target, lambda half: quantize(source, half, file_type))
    return target


def layer_weights(path):
    """Elements of the layers' matrices: what every token of a prompt is multiplied with. The
    output's are not among them, which only the last token meets."""
    tensors = gguf.GGUFReader(str(path)).tensors
    return sum(int(tensor.n_elements) for tensor in tensors
               if tensor.name.startswith("blk.") and len(tensor.shape) == 2)


def main():
    folder = pathlib.Path(sys.argv[1])
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    made = {}
    for name in sys.argv[2:]:
        path = provide(folder, name)
        made[name] = {"path": str(path), "bytes": path.stat().st_size,
                      "layer_weights": layer_weights(path)}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
