#pragma once
// A checkpoint's tensors by the part they play, with every shape checked.

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core.hpp"
#include "model/checkpoint.hpp"
#include "model/config.hpp"

namespace sluice::model {

/// A matrix product's weight [outputs, inputs], and its bias [outputs] or nullptr.
struct LinearTensors {
  const Tensor* weight = nullptr;
  const Tensor* bias = nullptr;
};

struct LayerTensors {
  const Tensor* attention_norm = nullptr;
  LinearTensors q, k, v, attention_output;
  const Tensor* q_norm = nullptr;  ///< [head_dim]; nullptr where heads are not normed
  const Tensor* k_norm = nullptr;
  const Tensor* attention_branch_norm = nullptr;  ///< nullptr where branches are not normed
  const Tensor* feed_forward_norm = nullptr;
  LinearTensors gate, up, down;
  const Tensor* feed_forward_branch_norm = nullptr;
};

/// Views into the file; valid as long as it.
struct ModelTensors {
  const Tensor* embedding = nullptr;
  std::vector<LayerTensors> layers;
  const Tensor* output_norm = nullptr;
  const Tensor* output = nullptr;  ///< `embedding` itself when tied
};

/// `bad_file` names a tensor that is missing or misshaped, with the shape due and the one found;
/// `unsupported` one that the decoder would not use, for then its result would be wrong.
Result<ModelTensors> find_tensors(const Checkpoint& file, const ModelConfig& config);

/// How weights are kept on the device.
enum class Quantization : std::uint8_t {
  none,  ///< as the file has them
  fp8,   ///< layers' matrices of plain floats as 8-bit floats, e4m3, with a scale for each output
};

/// As configurations spell it: "fp8", or nothing. `bad_request` names what there is.
Result<Quantization> find_quantization(std::string_view name);

/// Whether this matrix of a layer is kept otherwise than the file has it.
bool is_narrowed(const Tensor& matrix, Quantization quantization);

/// What a device that copies weights keeps of all of them, but for the padding of rows.
std::size_t device_bytes(const ModelTensors& tensors, const Checkpoint& file,
                         Quantization quantization);

/// A Digest of the files' settings and of every tensor's name, format, shape and bytes, in the
/// order of names: the weights' part of the numerics id. Of a tensor above 32 KiB, 8 stretches of
/// 256 bytes at even distances stand for the whole, its first and last bytes among them, so that
/// start stays fast. `io` where a file cannot be read.
Result<std::string> weights_fingerprint(const Checkpoint& file);

}  // namespace sluice::model
