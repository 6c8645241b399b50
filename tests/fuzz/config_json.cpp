// libFuzzer target: any text is either refused or makes a configuration that holds together.
#include "model/config_json.hpp"

#include <cmath>
#include <cstddef>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace sluice;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto read = model::read_config_json(text, "fuzz");
  if (!read) {
    SLUICE_ASSERT(read.error().message.starts_with("fuzz: "), "an error that names no file");
    return 0;
  }
  const model::ModelConfig& config = read->config;
  SLUICE_ASSERT(config.layers > 0 && config.hidden > 0 && config.vocabulary > 0, "nothing there");
  SLUICE_ASSERT(config.heads.heads % config.heads.kv_heads == 0, "heads that share unevenly");
  SLUICE_ASSERT(config.local.size() == config.layers, "not one window for each layer");
  SLUICE_ASSERT(config.attention_scale > 0, "a scale of nothing");
  for (const model::RopeConfig* rope : {&config.rope, &config.local_rope}) {
    SLUICE_ASSERT(rope->dimensions == config.heads.head_dim, "heads that turn in part");
    SLUICE_ASSERT(rope->inverse_frequencies.size() == rope->dimensions / 2, "pairs without a turn");
    SLUICE_ASSERT(std::isfinite(rope->magnitude), "no magnitude");
    for (const float frequency : rope->inverse_frequencies) {
      SLUICE_ASSERT(std::isfinite(frequency) && frequency >= 0, "no frequency");
    }
  }
  return 0;
}
