"""vLLM's side of bench/compare-llamacpp.sh, by its offline API: a model of SmolLM2-135M's shape in
BF16, whose weights are any, for the work does not depend on them. Asked as calls.py says; its
argument is how many threads."""
import json
import os
import sys
import tempfile
import time

import calls

SHAPE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
         "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
         "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": True,
         "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}


class Engine:
    """Without a server, and in this process, so that its time is counted as the peer's. Not
    compiled: on two cores vLLM was still compiling after four minutes."""

    def __init__(self, threads):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                          VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, cores)))
        import vllm  # reads these as it is imported
        self.vllm = vllm
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
                json.dump(SHAPE, file)
            self.llm = vllm.LLM(
                model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
                max_model_len=1024, max_num_seqs=64, enable_prefix_caching=False,
                distributed_executor_backend="uni", enforce_eager=True)

    def seconds(self, streams, tokens):
        params = self.vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True,
                                          detokenize=False)
        prompts = [{"prompt_token_ids": [10 + stream]} for stream in range(streams)]
        began = time.perf_counter()
        self.llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - began

    def generate(self, streams, tokens):
        """Tokens a second of all streams together, less what their first tokens take."""
        self.seconds(streams, 8)  # not counted
        first = self.seconds(streams, 1)
        return streams * tokens / (self.seconds(streams, tokens + 1) - first)


def preload_threads():
    """vLLM asks for Intel's OpenMP, which it comes with, in LD_PRELOAD, to be fast."""
    library = os.path.join(sys.prefix, "lib", "libiomp5.so")
    if "LD_PRELOAD" not in os.environ and os.path.exists(library):
        os.environ["LD_PRELOAD"] = library
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main():
    preload_threads()
    # Whatever vLLM prints is not an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = {"generate": Engine(int(sys.argv[1])).generate}
    calls.answer(lambda what, arguments: asked[what](**arguments), answers)


if __name__ == "__main__":
    main()
