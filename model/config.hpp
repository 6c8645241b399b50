#pragma once
// A model family is data: everything the one decoder needs to know about a checkpoint.

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/core.hpp"

namespace sluice::model {

class GgufFile;

/// Rotary position embedding of a model.
struct RopeConfig {
  kernels::RopePairs pairs = kernels::RopePairs::adjacent;
  std::uint32_t dimensions = 0;  ///< rotated elements of a head; <= head_dim
  float theta = 10000.0F;
  /// Rotation per position for each pair, [dimensions / 2], every scaling already applied
  /// (linear, Llama 3's by-wavelength, YaRN).
  std::vector<float> inverse_frequencies;
  float magnitude = 1.0F;
};

struct ModelConfig {
  std::string architecture;  ///< as the file names it, e.g. "llama"
  std::string name;
  std::uint32_t layers = 0;
  std::uint32_t hidden = 0;
  std::uint32_t feed_forward = 0;
  kernels::HeadShape heads;
  std::uint32_t vocabulary = 0;
  std::uint32_t context_tokens = 0;  ///< longest sequence the model was made for
  float norm_epsilon = 1e-5F;
  RopeConfig rope;
  kernels::Activation activation = kernels::Activation::silu;
  std::uint32_t window = 0;     ///< sliding attention window of local layers, in tokens; 0: all
  std::vector<bool> local;      ///< [layers]: whether the layer sees only the window
  RopeConfig local_rope;        ///< of local layers; `rope` is of those that see everything
  float embedding_scale = 1.0F;
  float attention_scale = 0.0F;  ///< multiplies q . k
  bool head_norms = false;       ///< q and k are normed head by head before they turn
  bool branch_norms = false;     ///< what a layer adds to the residual is normed first
  float attention_soft_cap = 0.0F;  ///< of q . k, scaled; 0: none
  float logit_soft_cap = 0.0F;      ///< 0: none
  bool tied_embeddings = false;
};

/// What a GGUF file says of its model. `unsupported` names an architecture or a feature that the
/// decoder lacks; `bad_file` a key or tensor that is missing or of the wrong shape.
Result<ModelConfig> read_config(const GgufFile& file);

}  // namespace sluice::model
