#pragma once
// What a Hugging Face config.json says of its model.

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/core.hpp"
#include "model/config.hpp"

namespace sluice::model {

struct JsonConfig {
  ModelConfig config;
  bool gains_less_one = false;  ///< norms' gains are stored less 1, as Gemma's are
  // Which products have a bias in the weights.
  bool qkv_bias = false;
  bool attention_output_bias = false;
  bool feed_forward_bias = false;
};

/// Reads the text of a config.json; `name` begins the messages. `unsupported` names an architecture
/// or a feature that the decoder lacks, `bad_file` a key that is missing, of another type, or out
/// of range. What a file leaves out has the value that `transformers` gives it.
Result<JsonConfig> read_config_json(std::string_view text, std::string_view name);

}  // namespace sluice::model
