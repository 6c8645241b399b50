#include "model/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "model/config_limits.hpp"
#include "model/gguf.hpp"
#include "model/rope.hpp"

// Keys and their meanings: the GGUF specification, and llama.cpp's reading of it where that is
// silent (rope scaling).

namespace sluice::model {
namespace {

using kernels::Activation;
using kernels::RopePairs;

/// What sets one architecture apart, as far as its files do not say it; a new family is a new row.
struct Family {
  std::string_view architecture;
  RopePairs pairs = RopePairs::halves;
  Activation activation = Activation::silu;
  bool head_norms = false;
  bool branch_norms = false;
  bool scales_embedding = false;  ///< by the root of the width
  /// With a window, the last of so many layers sees everything (0: none does). Unknown where files
  /// do not tell which layers have the window.
  std::optional<std::uint32_t> window_period = std::nullopt;
  std::uint32_t window = 0;        ///< where the file names none
  float local_theta = 0.0F;        ///< rope base of local layers, unscaled; 0: as the others'
  float attention_soft_cap = 0.0F;  ///< where the file names none
  float logit_soft_cap = 0.0F;
  /// The model of so many layers divides q . k by the root of width / heads, not of head_dim.
  std::uint32_t width_scaled_layers = 0;
};

// Llama 2/3, SmolLM2, TinyLlama and Mistral all call themselves "llama"; Qwen 1.5 and 2.5 "qwen2".
constexpr std::array families = std::to_array<Family>({
    {.architecture = "llama", .pairs = RopePairs::adjacent, .window_period = 0},
    {.architecture = "qwen2"},
    {.architecture = "qwen3", .head_norms = true},
    {.architecture = "gemma2",
     .activation = Activation::gelu_tanh,
     .branch_norms = true,
     .scales_embedding = true,
     .window_period = 2,
     .window = 4096,
     .attention_soft_cap = 50.0F,
     .logit_soft_cap = 30.0F,
     .width_scaled_layers = 46},
    {.architecture = "gemma3",
     .activation = Activation::gelu_tanh,
     .head_norms = true,
     .branch_norms = true,
     .scales_embedding = true,
     .window_period = 6,
     .local_theta = 10000.0F,
     .width_scaled_layers = 62},
});

/// A key that changes the arithmetic in a way no family here computes, unless it has this value.
struct Foreign {
  std::string_view key;
  double harmless;
  std::string_view feature;
};

constexpr std::array foreign_keys = std::to_array<Foreign>({
    {"expert_count", 0, "a mixture of experts"},
    {"use_parallel_residual", 0, "parallel residuals"},
    {"logit_scale", 1, "scaled logits"},
    {"residual_scale", 1, "scaled residuals"},
    {"embedding_scale", 1, "scaled embeddings"},
    {"attention.clamp_kqv", 0, "clamped attention inputs"},
    {"attention.max_alibi_bias", 0, "ALiBi"},
    {"attention.causal", 1, "attention that is not causal"},
    {"attention.shared_kv_layers", 0, "layers that share keys and values"},
    {"embedding_length_per_layer_input", 0, "embeddings of each layer"},
    {"router_logit_softcapping", 0, "soft-capped routing"},
    {"attention.temperature_scale", 0, "attention temperature"},
    {"attention.kv_lora_rank", 0, "latent attention"},
    {"rope.dimension_sections", 0, "multi-axis rope"},
    {"rope.scaling.alpha", 0, "rope scaling by alpha"},
    {"rope.scaling.yarn_log_multiplier", 0, "YaRN with a log multiplier"},
});

std::optional<double> as_number(const GgufValue& value) {
  if (const auto* number = std::get_if<std::uint64_t>(&value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<std::int64_t>(&value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<double>(&value)) return *number;
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? 1.0 : 0.0;
  return std::nullopt;
}

/// Reads one architecture's keys. The first error stays, and what is read after it is 0.
class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, std::string_view architecture)
      : file_(file), prefix_(std::string(architecture) + ".") {}

  bool has(std::string_view key) const { return file_.find(full(key)) != nullptr; }
  std::string full(std::string_view key) const { return prefix_ + std::string(key); }
  bool failed() const { return error_.has_value(); }
  const std::optional<Error>& error() const { return error_; }

  std::uint32_t count(std::string_view key, std::uint64_t max, std::uint64_t min = 1) {
    if (const GgufValue* value = file_.find(full(key));
        value != nullptr && std::holds_alternative<GgufArray>(*value)) {
      refuse(ErrorCode::unsupported, "metadata key '{}' differs by layer; only models with one "
             "value for all layers are supported", full(key));
    }
    if (failed()) return 0;
    const auto value = file_.unsigned_value(full(key));
    if (!value) {
      error_ = value.error();
      return 0;
    }
    if (*value < min || *value > max) {
      refuse(ErrorCode::bad_file, "metadata key '{}' is {}, from {} to {} is possible: convert "
             "the model again", full(key), *value, min, max);
      return 0;
    }
    return static_cast<std::uint32_t>(*value);
  }

  std::uint32_t count_or(std::string_view key, std::uint32_t absent, std::uint64_t max,
                         std::uint64_t min = 1) {
    return has(key) ? count(key, max, min) : absent;
  }

  double number(std::string_view key, double min, double max) {
    if (failed()) return 0;
    const auto value = file_.float_value(full(key));
    if (!value) {
      error_ = value.error();
      return 0;
    }
    if (!(*value >= min && *value <= max)) {  // also for a NaN
      refuse(ErrorCode::bad_file, "metadata key '{}' is {}, from {} to {} is possible: convert "
             "the model again", full(key), *value, min, max);
      return 0;
    }
    return *value;
  }

  double number_or(std::string_view key, double absent, double min, double max) {
    return has(key) ? number(key, min, max) : absent;
  }

  template <class... Args>
  void refuse(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
    if (failed()) return;
    error_ = Error{code, file_.name() + ": " + fmt::format(text, std::forward<Args>(args)...), 0};
  }

  const GgufFile& file() const { return file_; }

 private:
  const GgufFile& file_;
  std::string prefix_;
  std::optional<Error> error_;
};

void refuse_foreign(ConfigReader& in) {
  for (const Foreign& foreign : foreign_keys) {
    const GgufValue* value = in.file().find(in.full(foreign.key));
    if (value == nullptr || as_number(*value) == foreign.harmless) continue;
    in.refuse(ErrorCode::unsupported, "the model has {} (metadata key '{}'), which this decoder "
              "does not compute; use a model without", foreign.feature,
              in.full(foreign.key));
  }
  const GgufValue* parts = in.file().find("split.count");
  if (parts != nullptr && as_number(*parts) > 1.0) {
    in.refuse(ErrorCode::unsupported, "it is one part of a model split over {} files; merge them "
              "first (gguf-split --merge)", as_number(*parts).value());
  }
}

Yarn read_yarn(ConfigReader& in, std::uint32_t context) {
  Yarn yarn;
  yarn.original_context = in.count_or("rope.scaling.original_context_length", context,
                                      limits::context);
  yarn.beta_fast = in.number_or("rope.scaling.yarn_beta_fast", 32, 1e-3, 1e6);
  yarn.beta_slow = in.number_or("rope.scaling.yarn_beta_slow", 1, 1e-3, 1e6);
  yarn.extrapolation = in.number_or("rope.scaling.yarn_ext_factor", 1, 0, 1);
  return yarn;
}

/// Llama 3's scaling by wavelength comes as a tensor of divisors, one a pair.
std::vector<float> read_divisors(ConfigReader& in, std::uint32_t pairs) {
  const Tensor* tensor = in.file().find_tensor("rope_freqs.weight");
  if (tensor == nullptr) return {};
  if (tensor->shape != std::vector<std::uint64_t>{pairs}) {
    in.refuse(ErrorCode::bad_file, "tensor 'rope_freqs.weight' has shape [{}], [{}] belongs "
              "there: convert the model again", fmt::join(tensor->shape, ", "), pairs);
    return {};
  }
  std::vector<float> divisors(pairs);
  kernels::dequantize(tensor->format, tensor->data, divisors);
  for (const float divisor : divisors) {
    if (!(divisor > 0) || !std::isfinite(divisor)) {
      in.refuse(ErrorCode::bad_file, "tensor 'rope_freqs.weight' holds {}, where a positive number "
                "belongs: convert the model again", divisor);
    }
  }
  return divisors;
}

void read_rope(ConfigReader& in, RopeConfig& rope, std::uint32_t head_dim, std::uint32_t context) {
  rope.dimensions = in.count_or("rope.dimension_count", head_dim, limits::head_dim, 2);
  if (!in.failed() && (rope.dimensions > head_dim || rope.dimensions % 2 != 0)) {
    in.refuse(ErrorCode::bad_file, "metadata key '{}' is {}: it must be even and at most the head "
              "size {}", in.full("rope.dimension_count"), rope.dimensions, head_dim);
  }
  rope.theta = static_cast<float>(in.number_or("rope.freq_base", 10000.0, 1.001, 1e30));
  // A factor without a type means linear; `scale_linear` is the name of old files.
  std::string_view scaling = "linear";
  if (in.has("rope.scaling.type")) {
    const auto type = in.file().string_value(in.full("rope.scaling.type"));
    if (!type) in.refuse(ErrorCode::bad_file, "metadata key '{}' must be a string: convert the "
                         "model again", in.full("rope.scaling.type"));
    scaling = type.value_or("none");
  }
  if (scaling != "none" && scaling != "linear" && scaling != "yarn") {
    in.refuse(ErrorCode::unsupported, "rope scaling '{}' is not supported; none, linear, yarn and "
              "Llama 3's (tensor 'rope_freqs.weight') are", scaling.substr(0, 40));
  }
  RopeScaling how;
  if (scaling != "none") {
    how.factor = in.number_or("rope.scaling.factor",
                              in.number_or("rope.scale_linear", 1, 0, 1e6), 0, 1e6);
    if (how.factor == 0) how.factor = 1;  // how some writers say "off"
  }
  const double attention = in.number_or("rope.scaling.attn_factor", 1, 1e-3, 1e3) *
                           in.number_or("rope.scaling.yarn_attn_factor", 1, 1e-3, 1e3);
  if (scaling == "yarn") {
    how.yarn = read_yarn(in, context);
    if (how.yarn->extrapolation != 0) {
      rope.magnitude = static_cast<float>(yarn_magnitude(how.factor));
    }
  }
  rope.magnitude *= static_cast<float>(attention);
  how.divisors = read_divisors(in, rope.dimensions / 2);
  if (!in.failed()) set_frequencies(rope, how);
}

/// Local layers turn as the others do, unless they have a base of their own, which nothing scales.
void read_local_rope(ConfigReader& in, const Family& family, ModelConfig& config) {
  config.local_rope = config.rope;
  if (family.local_theta == 0 && !in.has("rope.freq_base_swa")) return;
  RopeConfig& rope = config.local_rope;
  rope.theta =
      static_cast<float>(in.number_or("rope.freq_base_swa", family.local_theta, 1.001, 1e30));
  rope.magnitude = 1.0F;
  if (!in.failed()) set_frequencies(rope, {});
}

/// Which layers see only the window. A file may say it: in a number as `Family::window_period`, or
/// with a flag a layer.
void read_windows(ConfigReader& in, const Family& family, ModelConfig& config) {
  constexpr std::string_view key = "attention.sliding_window_pattern";
  config.window = in.count_or("attention.sliding_window", family.window, limits::context, 0);
  if (in.failed()) return;
  config.local.assign(config.layers, false);
  if (config.window == 0) return;
  const GgufValue* own = in.file().find(in.full(key));
  if (const auto* array = own == nullptr ? nullptr : std::get_if<GgufArray>(own)) {
    const auto* flags = std::get_if<std::vector<bool>>(array);
    if (flags == nullptr || flags->size() != config.layers) {
      in.refuse(ErrorCode::bad_file, "metadata key '{}' is not a flag for each of {} layers: "
                "convert the model again", in.full(key), config.layers);
      return;
    }
    config.local = *flags;
    return;
  }
  if (own == nullptr && !family.window_period) {
    in.refuse(ErrorCode::unsupported, "the model has a window of {} tokens (metadata key '{}') in "
              "some of its layers, and does not say in which (metadata key '{}'); use a model "
              "without", config.window, in.full("attention.sliding_window"), in.full(key));
    return;
  }
  const std::uint32_t period =
      in.count_or(key, family.window_period.value_or(0), limits::layers, 0);
  for (std::uint32_t layer = 0; layer < config.layers; ++layer) {
    config.local[layer] = period == 0 || layer % period != period - 1;
  }
}

/// What the arithmetic is scaled and capped by.
void read_scales(ConfigReader& in, const Family& family, ModelConfig& config) {
  if (in.failed()) return;
  if (family.scales_embedding) {
    config.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
  }
  const std::uint32_t divisor = config.layers == family.width_scaled_layers
                                    ? config.hidden / config.heads.heads
                                    : config.heads.head_dim;
  config.attention_scale = static_cast<float>(in.number_or("attention.scale", 0, 0, 1e6));
  if (config.attention_scale == 0) {
    config.attention_scale = 1.0F / std::sqrt(static_cast<float>(divisor));
  }
  config.attention_soft_cap = static_cast<float>(
      in.number_or("attn_logit_softcapping", family.attention_soft_cap, 0, 1e6));
  config.logit_soft_cap = static_cast<float>(
      in.number_or("final_logit_softcapping", family.logit_soft_cap, 0, 1e6));
}

void read_heads(ConfigReader& in, ModelConfig& config) {
  config.heads.heads = in.count("attention.head_count", limits::heads);
  config.heads.kv_heads =
      in.count_or("attention.head_count_kv", config.heads.heads, limits::heads);
  if (in.failed()) return;
  const auto [heads, kv_heads, unused] = config.heads;
  if (heads % kv_heads != 0) {
    in.refuse(ErrorCode::bad_file, "{} attention heads cannot share {} key heads evenly: convert "
              "the model again", heads, kv_heads);
  }
  if (!in.has("attention.key_length") && config.hidden % heads != 0) {
    in.refuse(ErrorCode::bad_file, "metadata key '{}' is missing, and a width of {} is no multiple "
              "of {} heads: convert the model again", in.full("attention.key_length"),
              config.hidden, heads);
  }
  config.heads.head_dim =
      in.count_or("attention.key_length", config.hidden / heads, limits::head_dim);
  const std::uint32_t value_dim =
      in.count_or("attention.value_length", config.heads.head_dim, limits::head_dim);
  if (!in.failed() && value_dim != config.heads.head_dim) {
    in.refuse(ErrorCode::unsupported, "keys of {} and values of {} elements; only equal sizes are "
              "supported", config.heads.head_dim, value_dim);
  }
}

/// The vocabulary's size is the embedding's; whatever else names it must agree.
void read_vocabulary(ConfigReader& in, ModelConfig& config) {
  const Tensor* embedding = in.file().find_tensor("token_embd.weight");
  if (embedding == nullptr) {
    in.refuse(ErrorCode::bad_file, "tensor 'token_embd.weight' is missing: convert the model "
              "again");
    return;
  }
  config.vocabulary = embedding->matrix().rows;
  const std::uint32_t named = in.count_or("vocab_size", config.vocabulary, limits::width);
  std::uint64_t tokens = config.vocabulary;
  if (const GgufValue* value = in.file().find("tokenizer.ggml.tokens")) {
    const auto* array = std::get_if<GgufArray>(value);
    const auto* texts =
        array == nullptr ? nullptr : std::get_if<std::vector<std::string_view>>(array);
    tokens = texts == nullptr ? 0 : texts->size();
  }
  if (!in.failed() && (named != config.vocabulary || tokens != config.vocabulary)) {
    in.refuse(ErrorCode::bad_file, "tensor 'token_embd.weight' has {} tokens, metadata key '{}' "
              "says {}, the tokenizer has {}: convert the model again", config.vocabulary,
              in.full("vocab_size"), named, tokens);
  }
}

}  // namespace

Result<ModelConfig> read_config(const GgufFile& file) {
  const auto architecture = file.string_value("general.architecture");
  if (!architecture) return tl::unexpected<Error>(architecture.error());
  const auto* family =
      std::find_if(families.begin(), families.end(),
                   [&](const Family& one) { return one.architecture == *architecture; });
  if (family == families.end()) {
    std::string known;
    for (const Family& one : families) {
      known += (known.empty() ? "" : ", ") + std::string(one.architecture);
    }
    return fail(ErrorCode::unsupported, "{}: architecture '{}' is not supported; supported: {} "
                "(llama: Llama 2 and 3, SmolLM2, TinyLlama, Mistral)", file.name(),
                architecture->substr(0, 40), known);
  }
  ConfigReader in(file, *architecture);
  ModelConfig config;
  config.architecture = *architecture;
  config.name = file.string_value("general.name").value_or("");
  config.activation = family->activation;
  config.rope.pairs = family->pairs;
  config.head_norms = family->head_norms;
  config.branch_norms = family->branch_norms;
  refuse_foreign(in);
  config.layers = in.count("block_count", limits::layers);
  config.hidden = in.count("embedding_length", limits::width);
  config.feed_forward = in.count("feed_forward_length", limits::width);
  config.context_tokens = in.count("context_length", limits::context);
  config.norm_epsilon =
      static_cast<float>(in.number("attention.layer_norm_rms_epsilon", 0, 1));
  config.tied_embeddings = file.find_tensor("output.weight") == nullptr;
  read_heads(in, config);
  if (!in.failed()) read_rope(in, config.rope, config.heads.head_dim, config.context_tokens);
  read_local_rope(in, *family, config);
  read_windows(in, *family, config);
  read_scales(in, *family, config);
  read_vocabulary(in, config);
  if (in.failed()) return tl::unexpected<Error>(*in.error());
  return config;
}

}  // namespace sluice::model
