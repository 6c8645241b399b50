#pragma once
// One sequence's speed in the field's terms, with the machine's limit beside it. Over kernels,
// model and engine alone: no actors, no sockets.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/backend.hpp"
#include "kernels/core.hpp"

namespace sluice::bench {

struct LatencyOptions {
  std::string model;                     ///< path of a GGUF file
  std::string backend = "auto";          ///< auto, cpu, cuda
  std::uint32_t device = 0;              ///< which of the backend's devices
  std::uint32_t threads = 0;             ///< the cpu's; 0: one a core
  std::uint32_t prompt_tokens = 512;     ///< llama-bench's pp512
  std::uint32_t generated_tokens = 128;  ///< llama-bench's tg128
  std::uint32_t repetitions = 5;         ///< after one that is not counted
};

struct Rate {
  double mean = 0;
  double sd = 0;  ///< of the sample
};

struct LatencyResult {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t generated_tokens = 0;
  Rate prompt_tok_s;
  Rate generated_tok_s;
  /// Read for one generated token: the weights in the file's own format, and the keys and values of
  /// the mean position.
  double bytes_per_token = 0;
  double read_bandwidth_gb_s = 0;  ///< of the device at that working set; GB are 10^9 bytes
  double limit_tok_s = 0;          ///< bandwidth over bytes
  double ratio_to_limit = 0;
  std::uint32_t threads = 0;
  std::string backend;
  std::string device;
};

/// Prompt: one batch of random tokens, to its first token. Generation: from one token on, each step
/// planned while the last one runs, as the service does it. Errors are those of loading the model.
Result<LatencyResult> measure_latency(const LatencyOptions& options);

/// One object: `pp512_tok_s`, `tg128_tok_s` and so on, the numbers being those measured with.
std::string to_json(const LatencyResult& result);

/// A few lines for people.
std::string to_text(const LatencyResult& result);

}  // namespace sluice::bench
