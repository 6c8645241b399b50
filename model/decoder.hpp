#pragma once
// The one decoder: a checkpoint, or a rank's part of it, becomes weights on a backend and one
// recorded program.

#include <functional>
#include <memory>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/core.hpp"
#include "model/checkpoint.hpp"
#include "model/config.hpp"
#include "model/shards.hpp"
#include "model/weights.hpp"

namespace sluice::model {

/// Called while weights load, with bytes done and in all; may be empty.
using Progress = std::function<void(std::size_t done_bytes, std::size_t total_bytes)>;

/// A decoder ready to run on a backend.
struct Decoder {
  kernels::ProgramId program;
  kernels::StepProgram steps;     ///< as recorded; tests read buffers by it
  kernels::Buffer logits;         ///< sampled, [R, vocabulary]
  /// Of this rank, read per token by one decode row: embedding counted as a row.
  std::size_t weight_bytes = 0;
  /// Of all layers, then of local ones if theirs differ. Read in place by the backend, as the file
  /// is: keep both until the backend is gone.
  std::shared_ptr<const std::vector<float>> inverse_frequencies;
};

/// Loads a rank's weights and records its forward pass; one rank alone has all of it. Call after
/// `backend.allocate`, with a pool of the rank's key heads, and with several ranks after
/// `backend.join`. The errors of `find_tensors` and `cut_model`, and of the backend with the
/// tensor's name before them: `unsupported` where it cannot quantize.
Result<Decoder> load_decoder(const Checkpoint& file, const ModelConfig& config,
                             kernels::Backend& backend, const Progress& progress,
                             const Shard& shard = {},
                             Quantization quantization = Quantization::none);

}  // namespace sluice::model
