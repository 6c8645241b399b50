#pragma once
// The speed of one sequence, or of several that decode together, in the field's terms, with the
// machine's limit beside it. Over kernels, model and engine alone: no actors, no sockets.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/backend.hpp"
#include "kernels/core.hpp"

namespace sluice::bench {

struct LatencyOptions {
  std::string model;                     ///< path that open_checkpoint takes
  std::string shape;                     ///< instead: random weights, as random_checkpoint takes it
  std::string backend = "auto";          ///< auto, cpu, cuda
  std::string quantization;              ///< "fp8" on cuda, or none
  std::string kv_cache_dtype = "auto";   ///< "fp8" on cuda, or auto
  std::uint32_t device = 0;              ///< which of the backend's devices
  bool early_launches = true;            ///< as BackendOptions has it
  std::uint32_t threads = 0;             ///< the cpu's; 0: one a core
  std::uint32_t prompt_tokens = 512;     ///< llama-bench's pp512; 0: not measured
  std::uint32_t generated_tokens = 128;  ///< llama-bench's tg128; 0: not measured
  std::uint32_t streams = 1;             ///< sequences that generate together, a row each in a step
  std::uint32_t depth = 0;               ///< tokens that each has before it generates, not timed
  std::uint32_t repetitions = 5;         ///< after one that is not counted
};

struct Rate {
  double mean = 0;
  double sd = 0;  ///< of the sample
};

struct LatencyResult {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t generated_tokens = 0;
  std::uint32_t streams = 1;
  std::uint32_t depth = 0;
  Rate prompt_tok_s;     ///< if `prompt_tokens`
  Rate generated_tok_s;  ///< if `generated_tokens`, as what follows; of all streams together
  /// Read for one generated token: its share of the weights in the file's own format, which a step
  /// reads once for all streams, and the keys and values of the mean position.
  double bytes_per_token = 0;
  double read_bandwidth_gb_s = 0;  ///< of the device at a step's bytes; GB are 10^9 bytes
  double limit_tok_s = 0;          ///< bandwidth over bytes
  double ratio_to_limit = 0;
  /// While generating: the device's time in steps over the time that passed, and what a step is
  /// longer than the device's time in it.
  double device_busy = 0;
  double idle_step_us = 0;
  double step_p50_ms = 0;  ///< the device's time in a step, of all counted ones
  double step_p99_ms = 0;
  double first_token_s = 0;  ///< from the call to the first token: loading and one prompt
  std::uint32_t threads = 0;
  std::string backend;
  std::string device;
};

/// Prompt: one batch of random tokens, to its first token. Generation: from one token after `depth`
/// others on, each step planned while the last one runs, as the service does it. Errors are those
/// of loading the model, and `bad_request` when nothing is left to measure.
Result<LatencyResult> measure_latency(const LatencyOptions& options);

/// One object: `pp512_tok_s`, `tg128_tok_s` and so on, the numbers being those measured with. What
/// was not measured is left out.
std::string to_json(const LatencyResult& result);

/// A few lines for people.
std::string to_text(const LatencyResult& result);

}  // namespace sluice::bench
