#include "model/config_json.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "model/config_limits.hpp"
#include "model/json_text.hpp"
#include "model/mapped_file.hpp"
#include "model/rope.hpp"

// Keys, their defaults and their meanings: the configuration classes and modeling_rope_utils of
// transformers 4 and 5.

namespace sluice::model {
namespace {

using kernels::Activation;

/// Which layers see only a window.
enum class Windows {
  none,
  all,       ///< of `sliding_window` tokens
  from,      ///< from layer `max_window_layers` on, if `use_sliding_window`
  periodic,  ///< all but the last of every `window_period`
};

/// What sets one architecture apart, as far as its files need not say it; a new one is a new row.
struct Family {
  std::string_view architecture;
  std::string_view activation_key = "hidden_act";
  std::string_view activation = "silu";  ///< where the file names none
  Windows windows = Windows::none;
  std::uint32_t window = 0;         ///< where the file names none; 0: all
  std::uint32_t window_period = 0;  ///< likewise
  std::uint32_t head_dim = 0;       ///< likewise; 0: width / heads
  std::uint32_t kv_heads = 0;       ///< likewise; 0: as many as heads
  double theta = 10000.0;           ///< likewise
  double local_theta = 0;           ///< likewise, of layers with a window; 0: as the others'
  bool tied_embeddings = false;     ///< likewise
  bool head_norms = false;
  /// Gemma: norms of branches, gains less one, scaled embeddings, an own scale of attention.
  bool gemma = false;
  double attention_soft_cap = 0;  ///< where the file names none; 0: none
  double logit_soft_cap = 0;
  bool own_soft_caps = false;  ///< whether it has them at all
  bool always_qkv_bias = false;
  bool may_have_attention_bias = true;
  bool may_have_feed_forward_bias = false;
};

constexpr std::array families = std::to_array<Family>({
    {.architecture = "LlamaForCausalLM", .may_have_feed_forward_bias = true},
    {.architecture = "MistralForCausalLM",
     .windows = Windows::all,
     .window = 4096,
     .kv_heads = 8,
     .may_have_attention_bias = false},
    {.architecture = "Qwen2ForCausalLM",
     .windows = Windows::from,
     .window = 4096,
     .kv_heads = 32,
     .always_qkv_bias = true,
     .may_have_attention_bias = false},
    {.architecture = "Qwen3ForCausalLM",
     .windows = Windows::from,
     .window = 4096,
     .head_dim = 128,
     .kv_heads = 32,
     .head_norms = true},
    {.architecture = "Gemma2ForCausalLM",
     .activation_key = "hidden_activation",
     .activation = "gelu_pytorch_tanh",
     .windows = Windows::periodic,
     .window = 4096,
     .window_period = 2,
     .head_dim = 256,
     .kv_heads = 4,
     .tied_embeddings = true,
     .gemma = true,
     .attention_soft_cap = 50.0,
     .logit_soft_cap = 30.0,
     .own_soft_caps = true},
    {.architecture = "Gemma3ForCausalLM",
     .activation_key = "hidden_activation",
     .activation = "gelu_pytorch_tanh",
     .windows = Windows::periodic,
     .window = 4096,
     .window_period = 6,
     .head_dim = 256,
     .kv_heads = 4,
     .theta = 1e6,
     .local_theta = 10000.0,
     .tied_embeddings = true,
     .head_norms = true,
     .gemma = true,
     .own_soft_caps = true},
});

/// A key that changes the arithmetic in a way no family here computes, unless it has this value.
struct Foreign {
  std::string_view key;
  std::optional<double> harmless;  ///< besides null
  std::string_view feature;
};

constexpr std::array foreign_keys = std::to_array<Foreign>({
    {"quantization_config", std::nullopt, "quantized weights"},
    {"compression_config", std::nullopt, "compressed weights"},
    {"auto_map", std::nullopt, "code of its own"},
    {"num_experts", 0, "a mixture of experts"},
    {"num_local_experts", 0, "a mixture of experts"},
    {"partial_rotary_factor", 1, "heads that turn in part"},
    {"use_bidirectional_attention", 0, "attention that is not causal"},
    {"rope_interleaved", 0, "rope over neighbours"},
    {"use_mrope", 0, "multi-axis rope"},
    {"no_rope_layers", std::nullopt, "layers without rope"},
    {"use_qk_norm", 0, "norms of queries and keys"},
    {"clip_qkv", std::nullopt, "clamped attention inputs"},
    {"attention_multiplier", std::nullopt, "its own attention scale"},
    {"embedding_multiplier", 1, "scaled embeddings"},
    {"residual_multiplier", 1, "scaled residuals"},
    {"logits_scaling", 1, "scaled logits"},
    {"num_kv_shared_layers", 0, "layers that share keys and values"},
});

/// Reads the keys of one object. The first error of all readers stays, and what is read after it is
/// 0. A key that is null is absent, as in Python's classes.
class Reader {
 public:
  Reader(const Json& object, std::string_view file, std::string prefix,
         std::optional<Error>& error)
      : object_(object), file_(file), prefix_(std::move(prefix)), error_(error) {}

  const Json* find(std::string_view key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool has(std::string_view key) const { return find(key) != nullptr; }
  bool has_null(std::string_view key) const {
    const auto found = object_.find(key);
    return found != object_.end() && found->is_null();
  }
  bool failed() const { return error_.has_value(); }
  std::string full(std::string_view key) const { return prefix_ + std::string(key); }

  Reader inner(const Json& object, std::string_view key) const {
    return {object, file_, full(key) + ".", error_};
  }

  std::uint32_t count(std::string_view key, std::uint64_t max, std::uint64_t min = 1) {
    const Json* value = need(key);
    if (value == nullptr) return 0;
    if (!value->is_number_unsigned()) return wrong<std::uint32_t>(key, "a natural number");
    const auto number = value->get<std::uint64_t>();
    if (number < min || number > max) {
      refuse(ErrorCode::bad_file, "\"{}\" is {}, from {} to {} is possible: get the file again",
             full(key), number, min, max);
      return 0;
    }
    return static_cast<std::uint32_t>(number);
  }
  std::uint32_t count_or(std::string_view key, std::uint32_t absent, std::uint64_t max,
                         std::uint64_t min = 1) {
    return has(key) ? count(key, max, min) : absent;
  }

  double number(std::string_view key, double min, double max) {
    const Json* value = need(key);
    if (value == nullptr) return 0;
    if (!value->is_number()) return wrong<double>(key, "a number");
    const auto number = value->get<double>();
    if (!(number >= min && number <= max)) {
      refuse(ErrorCode::bad_file, "\"{}\" is {}, from {} to {} is possible: get the file again",
             full(key), number, min, max);
      return 0;
    }
    return number;
  }
  double number_or(std::string_view key, double absent, double min, double max) {
    return has(key) ? number(key, min, max) : absent;
  }

  bool flag_or(std::string_view key, bool absent) {
    const Json* value = find(key);
    if (value == nullptr || failed()) return absent;
    return value->is_boolean() ? value->get<bool>() : wrong<bool>(key, "true or false");
  }

  std::string text_or(std::string_view key, std::string_view absent) {
    const Json* value = find(key);
    if (value == nullptr || failed()) return std::string(absent);
    if (value->is_string()) return value->get<std::string>();
    return wrong<std::string>(key, "a text");
  }

  template <class... Args>
  void refuse(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
    if (failed()) return;
    error_ = Error{code, fmt::format("{}: {}", file_,
                                     fmt::format(text, std::forward<Args>(args)...)), 0};
  }

 private:
  const Json* need(std::string_view key) {
    if (failed()) return nullptr;
    const Json* value = find(key);
    if (value == nullptr) {
      refuse(ErrorCode::bad_file, "\"{}\" is missing: get the file again", full(key));
    }
    return value;
  }
  template <class T>
  T wrong(std::string_view key, std::string_view expected) {
    refuse(ErrorCode::bad_file, "\"{}\" is {} where {} belongs: get the file again", full(key),
           find(key)->type_name(), expected);
    return T{};
  }

  const Json& object_;
  std::string_view file_;
  std::string prefix_;
  std::optional<Error>& error_;
};

std::string known_architectures() {
  std::string known;
  for (const Family& one : families) {
    known += (known.empty() ? "" : ", ") + std::string(one.architecture);
  }
  return known;
}

/// The row of the model's architecture, or nullptr after a refusal.
const Family* find_family(Reader& in) {
  const Json* list = in.find("architectures");
  if (list == nullptr || !list->is_array() || list->size() != 1 || !list->front().is_string()) {
    in.refuse(ErrorCode::bad_file, "\"architectures\" does not name one architecture: get the file "
              "again");
    return nullptr;
  }
  const auto& name = list->front().get_ref<const std::string&>();
  const auto* family = std::find_if(families.begin(), families.end(), [&](const Family& one) {
    return one.architecture == name;
  });
  if (family != families.end()) return family;
  in.refuse(ErrorCode::unsupported, "architecture {} is not supported; supported: {}", shown(name),
            known_architectures());
  return nullptr;
}

void refuse_foreign(Reader& in, const Family& family) {
  const auto refuse = [&in](std::string_view feature, std::string_view key) {
    in.refuse(ErrorCode::unsupported, "the model has {} (\"{}\"), which this decoder does not "
              "compute; use a model without", feature, in.full(key));
  };
  for (const Foreign& foreign : foreign_keys) {
    const Json* value = in.find(foreign.key);
    if (value == nullptr) continue;
    std::optional<double> number;
    if (value->is_number()) number = value->get<double>();
    if (value->is_boolean()) number = value->get<bool>() ? 1 : 0;
    if (!number || number != foreign.harmless) refuse(foreign.feature, foreign.key);
  }
  if (family.windows == Windows::none && in.has("sliding_window")) {
    refuse("a window of attention", "sliding_window");
  }
  if (!family.own_soft_caps) {
    if (in.has("attn_logit_softcapping")) refuse("soft-capped attention", "attn_logit_softcapping");
    if (in.has("final_logit_softcapping")) refuse("soft-capped logits", "final_logit_softcapping");
  }
  if (!family.may_have_attention_bias && in.flag_or("attention_bias", false)) {
    refuse("biases of attention", "attention_bias");
  }
  if (!family.may_have_feed_forward_bias && in.flag_or("mlp_bias", false)) {
    refuse("biases of the feed-forward", "mlp_bias");
  }
}

void read_heads(Reader& in, const Family& family, ModelConfig& config) {
  kernels::HeadShape& heads = config.heads;
  heads.heads = in.count("num_attention_heads", limits::heads);
  heads.kv_heads = in.count_or("num_key_value_heads",
                               family.kv_heads == 0 ? heads.heads : family.kv_heads, limits::heads);
  if (in.failed()) return;
  if (heads.heads % heads.kv_heads != 0) {
    in.refuse(ErrorCode::bad_file, "{} attention heads cannot share {} key heads evenly: get the "
              "file again", heads.heads, heads.kv_heads);
  }
  if (family.head_dim == 0 && !in.has("head_dim") && config.hidden % heads.heads != 0) {
    in.refuse(ErrorCode::bad_file, "\"head_dim\" is missing, and a width of {} is no multiple of "
              "{} heads: get the file again", config.hidden, heads.heads);
  }
  heads.head_dim =
      in.count_or("head_dim", family.head_dim == 0 ? config.hidden / heads.heads : family.head_dim,
                  limits::head_dim);
  if (!in.failed() && heads.head_dim % 2 != 0) {
    in.refuse(ErrorCode::bad_file, "heads of {} elements cannot turn in pairs: get the file again",
              heads.head_dim);
  }
}

Activation read_activation(Reader& in, const Family& family) {
  const std::string name = in.text_or(family.activation_key, family.activation);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  in.refuse(ErrorCode::unsupported, "the activation {} (\"{}\") is not supported; silu and "
            "gelu_pytorch_tanh are", shown(name), family.activation_key);
  return Activation::silu;
}

/// One set of rope parameters, as the class of that name in transformers 5 has them; 4 called them
/// rope_scaling and kept the base beside. `top` is the whole file.
void read_scaling(Reader& in, Reader& top, RopeConfig& rope, std::uint32_t context) {
  const std::string type = in.text_or("rope_type", in.text_or("type", "default"));
  rope.theta = static_cast<float>(in.number_or("rope_theta", rope.theta, 1.001, 1e30));
  if (in.number_or("partial_rotary_factor", 1, 0, 1) != 1) {
    in.refuse(ErrorCode::unsupported, "the model has heads that turn in part (\"{}\"), which this "
              "decoder does not compute; use a model without", in.full("partial_rotary_factor"));
  }
  RopeScaling scaling;
  const auto factor = [&] { return in.number("factor", 1e-3, 1e6); };
  constexpr std::string_view original_key = "original_max_position_embeddings";
  const auto original = [&]() -> double {
    Reader& from = top.has(original_key) ? top : in;
    return from.count_or(original_key, context, limits::context);
  };
  if (type == "linear") {
    scaling.factor = factor();
  } else if (type == "llama3") {
    const double by = factor();
    const double low = in.number("low_freq_factor", 1e-3, 1e6);
    const double high = in.number("high_freq_factor", 1e-3, 1e6);
    if (!in.failed() && !(low < high)) {
      in.refuse(ErrorCode::bad_file, "\"{}\" is {}, not above \"{}\", {}: get the file again",
                in.full("high_freq_factor"), high, in.full("low_freq_factor"), low);
    }
    if (!in.failed()) scaling.divisors = llama3_divisors(rope, {by, low, high, original()});
  } else if (type == "yarn") {
    Yarn yarn;
    yarn.original_context = original();
    scaling.factor = in.has("factor") || in.failed() ? factor() : context / yarn.original_context;
    yarn.beta_fast = in.number_or("beta_fast", 32, 1e-3, 1e6);
    yarn.beta_slow = in.number_or("beta_slow", 1, 1e-3, 1e6);
    yarn.whole_pairs = in.flag_or("truncate", true);
    scaling.yarn = yarn;
    // With both, their ratio; otherwise the paper's.
    const double mscale = in.number_or("mscale", 0, 0, 1e3);
    const double all = in.number_or("mscale_all_dim", 0, 0, 1e3);
    const double usual = mscale > 0 && all > 0
                             ? yarn_magnitude(scaling.factor, mscale) /
                                   yarn_magnitude(scaling.factor, all)
                             : yarn_magnitude(scaling.factor);
    rope.magnitude = static_cast<float>(in.number_or("attention_factor", usual, 1e-3, 1e3));
  } else if (type != "default") {
    in.refuse(ErrorCode::unsupported, "rope scaling {} (\"{}\") is not supported; default, linear, "
              "llama3 and yarn are", shown(type), in.full("rope_type"));
  }
  if (!in.failed()) set_frequencies(rope, scaling);
}

void read_rope(Reader& in, const Family& family, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.pairs = kernels::RopePairs::halves;
  rope.dimensions = config.heads.head_dim;
  rope.theta = static_cast<float>(in.number_or("rope_theta", family.theta, 1.001, 1e30));
  RopeConfig local = rope;
  if (family.local_theta != 0) {
    local.theta =
        static_cast<float>(in.number_or("rope_local_base_freq", family.local_theta, 1.001, 1e30));
  }
  if (in.failed()) return;
  static const Json nothing = Json::object();
  const std::string_view key = in.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const Json& given = in.has(key) ? *in.find(key) : nothing;
  if (!given.is_object()) {
    in.refuse(ErrorCode::bad_file, "\"{}\" is no object: get the file again", key);
    return;
  }
  Reader outer = in.inner(given, key);
  const bool nested = outer.has("full_attention") || outer.has("sliding_attention");
  if (nested && family.local_theta == 0) {
    in.refuse(ErrorCode::unsupported, "the model turns its layers in different ways (\"{}\"), "
              "which this decoder does not compute for {}", key, family.architecture);
    return;
  }
  const auto part = [&](std::string_view name) -> Reader {
    const Json* object = nested ? outer.find(name) : nullptr;
    if (object != nullptr && !object->is_object()) {
      in.refuse(ErrorCode::bad_file, "\"{}\" is no object: get the file again", outer.full(name));
      object = nullptr;
    }
    return object == nullptr ? outer.inner(nothing, name) : outer.inner(*object, name);
  };
  Reader full = nested ? part("full_attention") : outer;
  read_scaling(full, in, rope, config.context_tokens);
  if (family.local_theta == 0) {
    config.local_rope = rope;
    return;
  }
  Reader sliding = part("sliding_attention");
  read_scaling(sliding, in, local, config.context_tokens);
  config.local_rope = local;
}

/// What a list of layer types says, over what the other keys do.
void read_layer_types(Reader& in, const Family& family, ModelConfig& config) {
  const Json* types = in.find("layer_types");
  if (types == nullptr) return;
  if (!types->is_array() || types->size() != config.layers) {
    in.refuse(ErrorCode::bad_file, "\"layer_types\" has not one type for each of {} layers: get "
              "the file again", config.layers);
    return;
  }
  std::vector<bool> local;
  for (const Json& type : *types) {
    const bool sliding = type == "sliding_attention";
    if (!sliding && type != "full_attention") {
      in.refuse(ErrorCode::unsupported, "layers of type {} (\"layer_types\") are not supported; "
                "full_attention and sliding_attention are",
                shown(type.is_string() ? type.get_ref<const std::string&>() : type.type_name()));
      return;
    }
    local.push_back(sliding && config.window > 0);
  }
  // Some classes do not look at the list; a file that means it then computes something else there.
  const bool heeded = family.windows == Windows::from || family.windows == Windows::periodic;
  if (!heeded && local != config.local) {
    in.refuse(ErrorCode::unsupported, "the model has layers of different windows "
              "(\"layer_types\"), which {} does not compute", family.architecture);
  }
  config.local = std::move(local);
}

void read_windows(Reader& in, const Family& family, ModelConfig& config) {
  const bool off = in.has_null("sliding_window") || family.windows == Windows::none ||
                   (family.windows == Windows::from && !in.flag_or("use_sliding_window", false));
  config.window = off ? 0 : in.count_or("sliding_window", family.window, limits::context);
  const std::uint32_t first = family.windows == Windows::from
                                  ? in.count_or("max_window_layers", 28, limits::layers, 0)
                                  : 0;
  const std::uint32_t period =
      family.windows == Windows::periodic
          ? in.count_or("sliding_window_pattern", family.window_period, limits::layers)
          : 0;
  if (in.failed()) return;
  config.local.assign(config.layers, false);
  for (std::uint32_t layer = 0; config.window > 0 && layer < config.layers; ++layer) {
    config.local[layer] = period != 0 ? (layer + 1) % period != 0 : layer >= first;
  }
  read_layer_types(in, family, config);
}

void read_scales(Reader& in, const Family& family, ModelConfig& config) {
  double divisor = config.heads.head_dim;
  if (family.gemma) {
    config.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
    divisor = in.number_or("query_pre_attn_scalar", 256, 1e-3, 1e9);
  }
  config.attention_scale = 1.0F / std::sqrt(static_cast<float>(divisor));
  if (!family.own_soft_caps) return;
  const auto cap = [&in](std::string_view key, double absent) {
    return static_cast<float>(in.has_null(key) ? 0 : in.number_or(key, absent, 0, 1e6));
  };
  config.attention_soft_cap = cap("attn_logit_softcapping", family.attention_soft_cap);
  config.logit_soft_cap = cap("final_logit_softcapping", family.logit_soft_cap);
}

}  // namespace

Result<JsonConfig> read_config_json(std::string_view text, std::string_view name) {
  const auto root = parse_json_object(text, name);
  if (!root) return tl::unexpected<Error>(root.error());
  std::optional<Error> error;
  Reader in(*root, name, "", error);
  JsonConfig read;
  ModelConfig& config = read.config;
  if (const Family* family = find_family(in)) {
    refuse_foreign(in, *family);
    config.architecture = family->architecture;
    config.head_norms = family->head_norms;
    config.branch_norms = read.gains_less_one = family->gemma;
    config.layers = in.count("num_hidden_layers", limits::layers);
    config.hidden = in.count("hidden_size", limits::width);
    config.feed_forward = in.count("intermediate_size", limits::width);
    config.vocabulary = in.count("vocab_size", limits::width);
    config.context_tokens = in.count("max_position_embeddings", limits::context);
    config.norm_epsilon = static_cast<float>(in.number_or("rms_norm_eps", 1e-6, 0, 1));
    config.tied_embeddings = in.flag_or("tie_word_embeddings", family->tied_embeddings);
    config.activation = read_activation(in, *family);
    read_heads(in, *family, config);
    if (!in.failed()) read_rope(in, *family, config);
    if (!in.failed()) read_windows(in, *family, config);
    if (!in.failed()) read_scales(in, *family, config);
    const bool attention = in.flag_or("attention_bias", false);
    read.qkv_bias = attention || family->always_qkv_bias;
    read.attention_output_bias = attention;
    read.feed_forward_bias = in.flag_or("mlp_bias", false);
  }
  if (error) return tl::unexpected<Error>(*error);
  return read;
}

}  // namespace sluice::model
