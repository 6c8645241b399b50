#!/usr/bin/env python3
"""Checks the CUDA backend on a GPU and measures it beside what the GPU could do: one call.

  check     test_kernels, which compares the device with a model of it in double
  golden    test_model: SmolLM2's logits, and those of a tiny model of each family, beside what
            transformers computes (with --models, a folder that has SmolLM2-135M-Instruct-Q4_1.gguf)
  sanitize  the same kernels under compute-sanitizer's memcheck and racecheck
  sums      what ranks add up in a decode step, beside NCCL's own sum: of one rank, a rank for each
            GPU, and two that share one, if NCCL lets them
  measure   sluice-bench on random weights of known shapes, each beside its limit and goal, and how
            busy the device was while it generated
  trace     not by default: a step of those rows, kernel by kernel (gpu_trace.py); needs the
            library of that name, which the bare build has where CUPTI's header was found
  peer      PyTorch and transformers on the same shape (gpu_torch.py), after `measure`
  start     16 GB of weights from the page cache to the first token (gpu_checkpoint.py)
  serve     a node of the whole bundle, end to end (with --bundle)

Needs the programs of the bare build and, of the project, this folder: build/bare, or the unpacked
archive of `scripts/bundle.sh --bare`. What compute-sanitizer or PyTorch (for the rate of cuBLAS
and as the peer) would tell is left out where they are missing. Goes on after a failure, and after a
step that does not end within --limit, which is killed; exit code 1 tells of one. Writes
OUT/gpu.json and each step's output beside it.

Usage: bench/gpu.py --bin FOLDER --out FOLDER [--bundle FOLDER] [--models FOLDER] [--quick]
                    [--parts check,golden,sums,measure,trace,peer,start,serve,sanitize]
                    [--rows REGEX]        of `measure`: those whose names it is found in
                    [--sanitized SUITES]  of `sanitize`: of test_kernels, with commas between
                    [--limit SECONDS]     of each step
                    [--backend cpu]       to try the script itself where there is no GPU
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import gpu_checkpoint
import gpu_trace

# Products of a prompt's token with all layers; the head multiplies the last row alone.
LAYER_WEIGHTS = {"llama-3.1-8b": 6.98e9, "llama-3.2-1b": 0.97e9, "smollm2-135m": 0.106e9}

# name, shape, what sluice-bench is told besides, what the result is held against, goal
ROWS = [
    ("8B bf16, 1 stream at 1,024", "llama-3.1-8b:bf16",
     "--prompt 0 --generate 128 --depth 1024", "bandwidth", 0.85),
    ("8B bf16, 32 streams at 1,024", "llama-3.1-8b:bf16",
     "--prompt 0 --generate 128 --streams 32 --depth 1024", "bandwidth", None),
    ("8B bf16, 1 stream at 1,024, plain launches", "llama-3.1-8b:bf16",
     "--plain-launches --prompt 0 --generate 128 --depth 1024", "bandwidth", None),
    ("8B fp8, 1 stream at 1,024", "llama-3.1-8b:bf16",
     "--quantization fp8 --prompt 0 --generate 128 --depth 1024", "bandwidth", 0.80),
    ("1B bf16, 1 stream at 1,024", "llama-3.2-1b:bf16",
     "--prompt 0 --generate 128 --depth 1024", "bandwidth", 0.70),
    ("8B bf16, prompt of 2,048", "llama-3.1-8b:bf16", "--prompt 2048 --generate 0", "cublas", 0.70),
    ("8B bf16, prompt of 8,192", "llama-3.1-8b:bf16", "--prompt 8192 --generate 0", "cublas", 0.70),
    ("8B bf16, 64 streams at 2,048", "llama-3.1-8b:bf16",
     "--prompt 0 --generate 32 --streams 64 --depth 2048 --repetitions 1", "bandwidth", None),
    ("8B bf16, 64 streams at 8,192", "llama-3.1-8b:bf16",
     "--prompt 0 --generate 32 --streams 64 --depth 8192 --repetitions 1", "bandwidth", 0.80),
] + [
    (f"8B {quantized.upper()}, 1 stream at 1,024", f"llama-3.1-8b:{quantized}",
     "--prompt 0 --generate 128 --depth 1024", "bandwidth", None)
    for quantized in ("q4_0", "q4_k", "q8_0")
] + [
    ("8B Q4_0, prompt of 2,048", "llama-3.1-8b:q4_0", "--prompt 2048 --generate 0", "cublas", None),
] + [
    (f"8B fp8, {streams} streams at 1,500", "llama-3.1-8b:bf16",
     f"--quantization fp8 --prompt 0 --generate 64 --streams {streams} --depth 1500 "
     "--repetitions 1",
     "tokens", 0.7 * 17744)
    for streams in (32, 128, 256, 384)
] + [
    (f"8B fp8 with fp8 KV, {streams} streams at 1,500", "llama-3.1-8b:bf16",
     "--quantization fp8 --kv-cache-dtype fp8 --prompt 0 --generate 64 "
     f"--streams {streams} --depth 1500 --repetitions 1",
     "tokens", 0.7 * 17744)
    for streams in (256, 384)
]
# name, what `sluice bench serve` is told, its result, goal
SERVED = [
    ("8B fp8 with fp8 KV, 128 in, 500 out, 1 client",
     "--num-prompts 5 --max-concurrency 1 --random-input-len 128 --output-len 500",
     "median_e2el_ms", 1100),
    ("8B fp8 with fp8 KV, 1,000 in, 1,000 out, 256 clients",
     "--num-prompts 512 --max-concurrency 256 --random-input-len 1000 --output-len 1000",
     "output_throughput", 0.7 * 17744),
]
SERVED_QUICK = [("small, 16 in, 8 out, 2 clients",
                 "--num-prompts 4 --max-concurrency 2 --random-input-len 16 --output-len 8",
                 "output_throughput", None)]
QUICK = [
    ("135M bf16, 1 stream", "smollm2-135m:bf16", "--prompt 0 --generate 8", "bandwidth", None),
    ("135M bf16, prompt of 64", "smollm2-135m:bf16", "--prompt 64 --generate 0", "cublas", None),
]

CUBLAS = """
import torch, time
n = 8192
a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
b = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
def timed(count):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        a @ b
    torch.cuda.synchronize()
    return time.perf_counter() - start
timed(5)
print(2 * n ** 3 * 20 / min(timed(20) for _ in range(3)))
"""


def file_name(name):
    return name.replace(" ", "-").replace(",", "")


class Run:
    def __init__(self, options):
        self.bin = pathlib.Path(options.bin).resolve()
        if (self.bin / "bin").is_dir():
            self.bin = self.bin / "bin"
        self.out = pathlib.Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.backend = options.backend
        self.limit_s = options.limit
        self.failed = []
        self.found = {"backend": options.backend, "steps": [], "rows": []}

    def step(self, name, command, environment=None):
        """Runs a command with its output in a file; returns it, or None with the failure noted.

        One that does not end in time is killed with all that it has started.
        """
        log = self.out / f"{file_name(name)}.log"
        began = time.monotonic()
        with open(log, "wb") as output:
            try:
                code = self.await_end(subprocess.Popen(
                    command, env={**os.environ, **(environment or {})}, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True))
            except OSError as error:
                code = str(error)
                output.write(f"{code}\n".encode())
        seconds = time.monotonic() - began
        text = log.read_text(encoding="utf-8", errors="replace")
        self.found["steps"].append({"name": name, "code": code, "seconds": round(seconds, 1)})
        said = {0: "ok    ", "timeout": "KILLED"}.get(code, "FAILED")
        print(f"{said} {seconds:6.1f} s  {name}", flush=True)
        if code == 0:
            return text
        self.failed.append(name)
        print("\n".join("  " + line for line in text.splitlines()[-6:]), flush=True)
        return None

    def await_end(self, process):
        """The exit code, or "timeout"."""
        try:
            return process.wait(self.limit_s)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own session's: a tool's child too
                process.wait()

    def check(self):
        self.step("test_kernels", [self.bin / "test_kernels"])

    def golden(self, models):
        if models is None:
            print("no --models: golden is left out")
            return
        text = self.step("golden", [self.bin / "test_model", "--run_test=golden,checkpoints",
                                    "--log_level=message", "--color_output=no"],
                         {"SLUICE_TEST_BACKENDS": self.backend,
                          "SLUICE_TEST_MODELS": str(pathlib.Path(models).resolve())})
        for line in (text or "").splitlines():
            if " positions, " in line:
                self.found["rows"].append({"name": "golden", "result": line})
                print(f"       {line}", flush=True)

    def sums(self):
        program = self.bin / "sluice-bench-collectives"
        tries = [("sums of 1 rank", ["--ranks", "1"]),
                 ("sums of 2 ranks on one GPU",
                  ["--ranks", "2", "--share-device", "--rows", "1,64"])]
        gpus = 1
        if shutil.which("nvidia-smi"):
            listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, text=True,
                                    check=False).stdout
            gpus = sum(line.startswith("GPU ") for line in listed.splitlines())
        if gpus > 1:
            tries.append((f"sums of {gpus} ranks", ["--ranks", str(gpus)]))
        for name, arguments in tries:
            text = self.step(name, [program, "--gpu", "--json", *arguments])
            for line in (text or "").splitlines():
                if not line.startswith("{"):
                    continue
                row = {"name": name, **json.loads(line)}
                self.found["rows"].append(row)
                if "refused" in row:
                    print(f"       refused: {row['refused']}", flush=True)
                    continue
                print(f"       {row['rows']} rows of {row['width']}: {row['fused_us']:.2f} us, "
                      f"apart {row['apart_us']:.2f}, NCCL's own {row['library_us']:.2f}; "
                      f"{row['collectives']}", flush=True)

    def sanitize(self, suites):
        tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not pathlib.Path(tool).exists():
            print("no compute-sanitizer: left out")
            return
        for kind in ("memcheck", "racecheck"):
            self.step(kind, [tool, "--tool", kind, "--error-exitcode", "9", self.bin /
                             "test_kernels", f"--run_test={suites}"],
                      {"SLUICE_TEST_BACKENDS": "cuda"})

    def measure(self, rows):
        cublas = None
        if self.backend == "cuda" and any(against == "cublas" for _, _, _, against, _ in rows):
            text = self.step("cublas", [sys.executable, "-c", CUBLAS])
            cublas = float(text.split()[-1]) if text else None
        for name, shape, arguments, against, goal in rows:
            text = self.step(name, [self.bin / "sluice-bench", "--shape", shape, "--backend",
                                    self.backend, "--repetitions", "3", "--json",
                                    *arguments.split()])
            if text is None:
                continue
            result = json.loads(text.splitlines()[-1])
            row = {"name": name, "shape": shape, "arguments": arguments, "goal": goal,
                   "result": result}
            if against == "cublas":
                rate = next(value for key, value in result.items()
                            if key.startswith("pp") and key.endswith("_tok_s"))
                flops = 2 * LAYER_WEIGHTS[shape.split(":")[0]] * rate
                row["teraflops"] = flops / 1e12
                row["reached"] = flops / cublas if cublas else None
            elif against == "bandwidth":
                row["reached"] = result["ratio_to_limit"]
            else:
                row["reached"] = next(value for key, value in result.items()
                                      if key.startswith("tg") and key.endswith("_tok_s"))
            self.found["rows"].append(row)
            print(f"       reached {row['reached']}, goal {goal}", flush=True)
            if "device_busy" in result:  # goals: 0.99 and 20
                print(f"       busy {result['device_busy']:.3f}, a step rests "
                      f"{result['idle_step_us']:.1f} us", flush=True)
        self.found["cublas_flops"] = cublas

    def peer(self, quick):
        if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
            print("no PyTorch with transformers: left out")
            return
        shape, depth = ("small", 16) if quick else ("llama-3.1-8b", 1024)
        script = pathlib.Path(__file__).with_name("gpu_torch.py")
        for streams, name in ((1, "8B bf16, 1 stream at 1,024"),
                              (32, "8B bf16, 32 streams at 1,024")):
            text = self.step(f"PyTorch, {streams} streams", [
                sys.executable, script, "--shape", shape, "--streams", str(streams), "--depth",
                str(depth), "--device", self.backend])
            if text is None:
                continue
            row = {"name": f"PyTorch, {name}", "result": json.loads(text.splitlines()[-1]),
                   "goal": 1.5}
            ours = [one["result"]["tg128_tok_s"] for one in self.found["rows"]
                    if one["name"] == name]
            row["reached"] = ours[0] / row["result"]["tok_s"] if ours else None
            self.found["rows"].append(row)
            print(f"       ours / its {row['reached']}, goal 1.5", flush=True)

    def start(self, quick):
        with tempfile.TemporaryDirectory() as folder:
            shape = gpu_checkpoint.SHAPES["small" if quick else "llama-3.1-8b"]
            size = gpu_checkpoint.write(pathlib.Path(folder), shape)
            for name in ("start, first", "start"):  # the second counts
                text = self.step(name, [self.bin / "sluice-bench", "--model", folder, "--backend",
                                        self.backend, "--prompt", "128", "--generate", "0",
                                        "--repetitions", "1", "--json"])
                if text is None:
                    continue
                seconds = json.loads(text.splitlines()[-1])["first_token_s"]
                self.found["rows"].append({"name": name, "bytes": size, "reached": seconds,
                                           "goal": 10})
                print(f"       {size / 1e9:.1f} GB to the first token in {seconds:.2f} s, goal 10",
                      flush=True)

    def serve(self, bundle, quick):
        sluice = pathlib.Path(bundle).resolve() / "bin" / "sluice"
        with tempfile.TemporaryDirectory() as folder:
            shape = gpu_checkpoint.SHAPES["small" if quick else "llama-3.1-8b"]
            gpu_checkpoint.write(pathlib.Path(folder), shape)
            command = [sluice, "node", "--model", folder, "--backend", self.backend, "--context",
                       "4096", "--slots", "256", "--listen", "tcp://127.0.0.1:0"]
            if self.backend == "cuda":
                command += ["--quantization", "fp8", "--kv-cache-dtype", "fp8"]
            with (open(self.out / "node.log", "w", encoding="utf-8") as log,
                  subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as node):
                try:
                    ready = node.stdout.readline().split()
                    if ready[:1] != ["ready"]:
                        self.failed.append("the node's start: see node.log")
                        return
                    for name, arguments, figure, goal in SERVED_QUICK if quick else SERVED:
                        text = self.step(name, [sluice, "bench", "serve", "--connect", ready[1],
                                                "--json", *arguments.split()])
                        if text is None:
                            continue
                        result = json.loads(text.splitlines()[-1])
                        self.found["rows"].append({"name": name, "result": result, "goal": goal,
                                                   "reached": result[figure]})
                        print(f"       {figure} {result[figure]}, goal {goal}", flush=True)
                finally:
                    node.terminate()

    def trace(self, rows):
        """Where a step's time went, kernel by kernel: a decode step's, or a prompt's last."""
        library = self.bin.parent / "lib" / "sluice" / "libsluice_gpu_trace.so"
        if not library.exists():
            library = self.bin / "libsluice_gpu_trace.so"  # of a build folder
        cupti = next((path for root in ("/usr/local/cuda", *sys.path) if os.path.isdir(root)
                      for path in pathlib.Path(root).glob("**/libcupti.so.13")), None)
        if cupti is None or not library.exists():
            print("no libcupti.so.13, or no libsluice_gpu_trace.so: traces are left out")
            return
        folders = [str(cupti.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        for name, shape, arguments, against, _ in rows:
            few = ["--repetitions", "4"] if against == "cublas" else [
                "--repetitions", "1", "--generate", "8"]
            file = self.out / f"{file_name('trace ' + name)}.txt"
            text = self.step(f"trace, {name}", [
                self.bin / "sluice-bench", "--shape", shape, "--backend", self.backend,
                *arguments.split(), *few], {
                    "CUDA_INJECTION64_PATH": str(library), "SLUICE_TRACE": str(file),
                    "LD_LIBRARY_PATH": ":".join(folders)})
            lines = gpu_trace.table(gpu_trace.read(file)) if text and file.exists() else None
            if lines:
                self.found["rows"].append({"name": f"trace, {name}", "result": lines})
                print("\n".join("       " + line for line in lines[:12]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--parts", default="check,golden,sums,measure,peer,start,serve,sanitize")
    parser.add_argument("--bundle")
    parser.add_argument("--models")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=re.compile, default="")
    parser.add_argument("--sanitized", default="conformance,invariance,cuda_linear")
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--backend", default="cuda")
    options = parser.parse_args()
    rows = [row for row in (QUICK if options.quick else ROWS) if options.rows.search(row[0])]
    if not rows:
        parser.error("--rows: no row has such a name")
    run = Run(options)
    run.step("backends", [run.bin / "sluice-bench", "--backends"])
    parts = options.parts.split(",")
    if "check" in parts:
        run.check()
    if "golden" in parts:
        run.golden(options.models)
    if "sums" in parts and options.backend == "cuda":
        run.sums()
    if "measure" in parts:
        run.measure(rows)
    if "trace" in parts and options.backend == "cuda":
        run.trace(rows)
    if "peer" in parts:
        run.peer(options.quick)
    if "start" in parts:
        run.start(options.quick)
    if "serve" in parts and options.bundle:
        run.serve(options.bundle, options.quick)
    if "sanitize" in parts and options.backend == "cuda":
        run.sanitize(options.sanitized)
    (run.out / "gpu.json").write_text(json.dumps(run.found, indent=1, default=str) + "\n",
                                      encoding="utf-8")
    sys.exit(1 if run.failed else 0)


if __name__ == "__main__":
    main()
