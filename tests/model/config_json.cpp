// Shows what config.json of each family becomes: defaults of transformers where keys are left out,
// both ways of writing rope's parameters, windows, scales; and that what changes the arithmetic and
// is not known is refused by its key. That the numbers mean what transformers takes them for, the
// logits of `hf_checkpoint` show.
#include "model/config_json.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

namespace sluice::model {
namespace {

using nlohmann::json;

/// The keys that no file leaves out.
json small(const std::string& architecture) {
  return {{"architectures", {architecture}}, {"num_hidden_layers", 8},
          {"hidden_size", 64},               {"intermediate_size", 96},
          {"num_attention_heads", 4},        {"num_key_value_heads", 2},
          {"vocab_size", 100},               {"max_position_embeddings", 256}};
}

json with(json config, const json& changes) {
  config.update(changes);
  return config;
}

JsonConfig read(const json& config) {
  const auto found = read_config_json(config.dump(), "config.json");
  BOOST_REQUIRE_MESSAGE(found, found.error().message);
  return *found;
}

void refused(const json& config, ErrorCode code, const std::string& part) {
  const auto found = read_config_json(config.dump(), "config.json");
  BOOST_REQUIRE_MESSAGE(!found, "accepted, where this was due: " << part);
  BOOST_TEST(to_string(found.error().code) == to_string(code));
  BOOST_TEST(found.error().message.starts_with("config.json: "));
  BOOST_TEST(found.error().message.find(part) != std::string::npos,
             "'" << part << "' is missing in: " << found.error().message);
}

std::string locals(const ModelConfig& config) {
  std::string out;
  for (const bool local : config.local) out += local ? 'w' : '.';
  return out;
}

double frequency(double theta, int pair, int dimensions) {
  return std::pow(theta, -2.0 * pair / dimensions);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(config_json)

BOOST_AUTO_TEST_CASE(llama_and_what_it_leaves_out) {
  json file = small("LlamaForCausalLM");
  file.erase("num_key_value_heads");
  const JsonConfig found = read(file);
  const ModelConfig& config = found.config;
  BOOST_TEST(config.architecture == "LlamaForCausalLM");
  BOOST_TEST((config.layers == 8U && config.hidden == 64U && config.feed_forward == 96U));
  BOOST_TEST((config.heads.heads == 4U && config.heads.kv_heads == 4U));
  BOOST_TEST((config.heads.head_dim == 16U && config.vocabulary == 100U));
  BOOST_TEST((config.context_tokens == 256U && config.norm_epsilon == 1e-6F));
  BOOST_TEST((config.rope.pairs == kernels::RopePairs::halves && config.rope.theta == 10000.0F));
  BOOST_TEST((config.activation == kernels::Activation::silu));
  BOOST_TEST((!config.tied_embeddings && !config.head_norms && !config.branch_norms));
  BOOST_TEST((config.window == 0U && locals(config) == "........"));
  BOOST_TEST((config.attention_scale == 0.25F && config.embedding_scale == 1.0F));
  BOOST_TEST((!found.qkv_bias && !found.attention_output_bias && !found.feed_forward_bias));
  BOOST_TEST(!found.gains_less_one);
  const JsonConfig full = read(with(file, {{"head_dim", 32}, {"rms_norm_eps", 1e-5},
                                           {"tie_word_embeddings", true}, {"head_size", nullptr},
                                           {"attention_bias", true}, {"mlp_bias", true}}));
  BOOST_TEST((full.config.heads.head_dim == 32U && full.config.norm_epsilon == 1e-5F));
  BOOST_TEST((full.config.tied_embeddings && full.qkv_bias && full.attention_output_bias));
  BOOST_TEST(full.feed_forward_bias);
}

BOOST_AUTO_TEST_CASE(mistral_has_a_window_unless_it_says_none) {
  const json file = small("MistralForCausalLM");
  BOOST_TEST(read(file).config.window == 4096U);
  BOOST_TEST(locals(read(file).config) == "wwwwwwww");
  BOOST_TEST(read(with(file, {{"sliding_window", 7}})).config.window == 7U);
  json open = file;
  open["sliding_window"] = nullptr;
  BOOST_TEST((read(open).config.window == 0U && locals(read(open).config) == "........"));
  json eight = file;
  eight["num_attention_heads"] = 16;
  eight.erase("num_key_value_heads");
  BOOST_TEST(read(eight).config.heads.kv_heads == 8U);
  json mixed = with(file, {{"sliding_window", 7}});
  mixed["layer_types"] = json::array();
  for (int i = 0; i < 8; ++i) mixed["layer_types"].push_back("sliding_attention");
  BOOST_TEST(locals(read(mixed).config) == "wwwwwwww");
  mixed["layer_types"][3] = "full_attention";
  refused(mixed, ErrorCode::unsupported, "\"layer_types\"");
}

BOOST_AUTO_TEST_CASE(qwen_has_windows_from_a_layer_on_if_it_uses_them) {
  const json file = with(small("Qwen2ForCausalLM"), {{"sliding_window", 9}});
  const JsonConfig plain = read(file);
  BOOST_TEST((plain.config.window == 0U && plain.qkv_bias && !plain.attention_output_bias));
  const json used = with(file, {{"use_sliding_window", true}});
  BOOST_TEST(locals(read(used).config) == "........");  // from layer 28 on
  BOOST_TEST(locals(read(with(used, {{"max_window_layers", 6}})).config) == "......ww");
  json listed = with(used, {{"max_window_layers", 6}});
  listed["layer_types"] = json::parse(
      R"(["sliding_attention", "full_attention", "full_attention", "full_attention",
          "full_attention", "full_attention", "full_attention", "sliding_attention"])");
  BOOST_TEST(locals(read(listed).config) == "w......w");
  listed["layer_types"][2] = "linear_attention";
  refused(listed, ErrorCode::unsupported, "'linear_attention'");
  listed["layer_types"].erase(2);
  refused(listed, ErrorCode::bad_file, "\"layer_types\" has not one type for each of 8 layers");

  json third = small("Qwen3ForCausalLM");
  const JsonConfig qwen3 = read(third);
  json odd = with(third, {{"layer_types", std::vector<std::string>(8, "linear_attention")}});
  refused(odd, ErrorCode::unsupported, "'linear_attention'");  // though it has no window
  BOOST_TEST((qwen3.config.head_norms && qwen3.config.heads.head_dim == 128U && !qwen3.qkv_bias));
}

BOOST_AUTO_TEST_CASE(gemma_scales_and_caps) {
  const ModelConfig two = read(small("Gemma2ForCausalLM")).config;
  BOOST_TEST((two.branch_norms && !two.head_norms && two.tied_embeddings));
  BOOST_TEST(read(small("Gemma2ForCausalLM")).gains_less_one);
  BOOST_TEST((two.heads.head_dim == 256U && two.embedding_scale == 8.0F));
  BOOST_TEST((two.attention_scale == 0.0625F && two.activation == kernels::Activation::gelu_tanh));
  BOOST_TEST((two.attention_soft_cap == 50.0F && two.logit_soft_cap == 30.0F));
  BOOST_TEST((locals(two) == "w.w.w.w." && two.window == 4096U));

  json file = small("Gemma3ForCausalLM");
  file["query_pre_attn_scalar"] = 64;
  file["attn_logit_softcapping"] = nullptr;
  const ModelConfig three = read(file).config;
  BOOST_TEST((three.head_norms && three.branch_norms && three.attention_scale == 0.125F));
  BOOST_TEST((three.attention_soft_cap == 0.0F && three.logit_soft_cap == 0.0F));
  BOOST_TEST(locals(three) == "wwwww.ww");
  BOOST_TEST((three.rope.theta == 1e6F && three.local_rope.theta == 1e4F));
  BOOST_TEST(locals(read(with(file, {{"sliding_window_pattern", 4}})).config) == "www.www.");
  const ModelConfig older = read(with(file, {{"rope_theta", 5e5}, {"rope_local_base_freq", 2e4},
      {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8.0}}}})).config;
  BOOST_TEST((older.rope.theta == 5e5F && older.local_rope.theta == 2e4F));
  BOOST_CHECK_CLOSE(older.rope.inverse_frequencies[3], frequency(5e5, 3, 256) / 8, 1e-4);
  BOOST_CHECK_CLOSE(older.local_rope.inverse_frequencies[3], frequency(2e4, 3, 256), 1e-4);
  const ModelConfig nested = read(with(file, {{"rope_parameters",
      {{"full_attention", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 3e5}}},
       {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 4e4}}}}}})).config;
  BOOST_TEST((nested.rope.theta == 3e5F && nested.local_rope.theta == 4e4F));
  BOOST_CHECK_CLOSE(nested.rope.inverse_frequencies[3], frequency(3e5, 3, 256) / 2, 1e-4);
}

BOOST_AUTO_TEST_CASE(rope_is_scaled_in_every_way_it_is_written) {
  const json file = with(small("LlamaForCausalLM"), {{"rope_theta", 5e5}});
  const auto rope = [&](const char* key, const json& parameters) {
    return read(with(file, {{key, parameters}})).config.rope;
  };
  BOOST_CHECK_CLOSE(read(file).config.rope.inverse_frequencies[2], frequency(5e5, 2, 16), 1e-4);
  const json linear = {{"type", "linear"}, {"factor", 4}};
  BOOST_CHECK_CLOSE(rope("rope_scaling", linear).inverse_frequencies[2],
                    frequency(5e5, 2, 16) / 4, 1e-4);
  const json newer = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 1e4}};
  BOOST_CHECK_CLOSE(rope("rope_parameters", newer).inverse_frequencies[2],
                    frequency(1e4, 2, 16) / 4, 1e-4);

  // Llama 3.1's, by its pairs' wavelengths: kept, in between, divided.
  const json llama3 = {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 64}};
  const auto by_wavelength = rope("rope_scaling", llama3).inverse_frequencies;
  BOOST_CHECK_CLOSE(by_wavelength[0], 1.0, 1e-4);
  const double turns = 64 * frequency(5e5, 1, 16) / (2 * std::numbers::pi);
  const double smooth = (turns - 1) / 3;
  BOOST_TEST((smooth > 0 && smooth < 1));
  BOOST_CHECK_CLOSE(by_wavelength[1],
                    frequency(5e5, 1, 16) * ((1 - smooth) / 8 + smooth), 1e-3);
  BOOST_CHECK_CLOSE(by_wavelength[4], frequency(5e5, 4, 16) / 8, 1e-4);

  json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}};
  BOOST_CHECK_CLOSE(rope("rope_scaling", yarn).magnitude, 1 + 0.1 * std::log(4.0), 1e-4);
  BOOST_CHECK_CLOSE(rope("rope_scaling", yarn).inverse_frequencies[0], 1.0, 1e-4);
  BOOST_CHECK_CLOSE(rope("rope_scaling", yarn).inverse_frequencies[7],
                    frequency(5e5, 7, 16) / 4, 1e-4);
  yarn["mscale"] = yarn["mscale_all_dim"] = 0.707;
  BOOST_CHECK_CLOSE(rope("rope_scaling", yarn).magnitude, 1.0, 1e-4);
  yarn["attention_factor"] = 0.5;
  BOOST_TEST(rope("rope_scaling", yarn).magnitude == 0.5F);
  yarn.erase("attention_factor");
  yarn.erase("mscale");
  yarn.erase("factor");  // 256 / 64
  BOOST_CHECK_CLOSE(rope("rope_scaling", yarn).magnitude, 1 + 0.1 * std::log(4.0), 1e-4);
}

BOOST_AUTO_TEST_CASE(refuses_what_it_does_not_know_by_name) {
  const json file = small("LlamaForCausalLM");
  const auto unsupported = [&](const json& changes, const std::string& part) {
    refused(with(file, changes), ErrorCode::unsupported, part);
  };
  unsupported({{"architectures", {"MambaForCausalLM"}}}, "'MambaForCausalLM' is not supported");
  unsupported({{"architectures", {"LlamaForSequenceClassification"}}}, "LlamaForCausalLM, Mistral");
  unsupported({{"hidden_act", "relu"}}, "the activation 'relu'");
  unsupported({{"hidden_act", "gelu"}}, "the activation 'gelu'");
  unsupported({{"quantization_config", {{"quant_method", "gptq"}}}}, "\"quantization_config\"");
  unsupported({{"auto_map", {{"AutoModelForCausalLM", "x.Y"}}}}, "\"auto_map\"");
  unsupported({{"num_local_experts", 8}}, "a mixture of experts");
  unsupported({{"partial_rotary_factor", 0.5}}, "\"partial_rotary_factor\"");
  unsupported({{"use_bidirectional_attention", true}}, "not causal");
  unsupported({{"rope_interleaved", true}}, "\"rope_interleaved\"");
  unsupported({{"residual_multiplier", 0.22}}, "scaled residuals");
  unsupported({{"final_logit_softcapping", 30.0}}, "soft-capped logits");
  unsupported({{"sliding_window", 128}}, "\"sliding_window\"");
  unsupported({{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}}}, "'dynamic'");
  unsupported({{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}},
              "\"rope_parameters.partial_rotary_factor\"");
  unsupported({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}},
              "turns its layers in different ways");
  refused(with(small("MistralForCausalLM"), {{"attention_bias", true}}), ErrorCode::unsupported,
          "\"attention_bias\"");
  refused(with(small("Qwen2ForCausalLM"), {{"mlp_bias", true}}), ErrorCode::unsupported,
          "\"mlp_bias\"");
  BOOST_TEST(read(with(file, {{"num_local_experts", 0}, {"residual_multiplier", 1.0},
                              {"use_bidirectional_attention", false}})).config.layers == 8U);
}

BOOST_AUTO_TEST_CASE(refuses_what_is_missing_or_makes_no_sense) {
  const json file = small("LlamaForCausalLM");
  for (const std::string key : {"num_hidden_layers", "hidden_size", "intermediate_size",
                                "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    json less = file;
    less.erase(key);
    refused(less, ErrorCode::bad_file, "\"" + key + "\" is missing");
    less[key] = nullptr;
    refused(less, ErrorCode::bad_file, "\"" + key + "\" is missing");
    refused(with(file, {{key, 0}}), ErrorCode::bad_file, "\"" + key + "\" is 0, from 1 to");
    refused(with(file, {{key, 1 << 30}}), ErrorCode::bad_file, "\"" + key + "\" is 1073741824");
    refused(with(file, {{key, -1}}), ErrorCode::bad_file, "where a natural number belongs");
    refused(with(file, {{key, "8"}}), ErrorCode::bad_file, "\"" + key + "\" is string");
  }
  const auto bad = [&](const json& changes, const std::string& part) {
    refused(with(file, changes), ErrorCode::bad_file, part);
  };
  bad({{"architectures", json::array()}}, "\"architectures\"");
  bad({{"architectures", {"LlamaForCausalLM", "x"}}}, "does not name one architecture");
  bad({{"num_key_value_heads", 3}}, "cannot share 3 key heads evenly");
  bad({{"num_attention_heads", 6}}, "\"head_dim\" is missing");
  bad({{"head_dim", 7}}, "heads of 7 elements");
  bad({{"rms_norm_eps", 2}}, "\"rms_norm_eps\" is 2");
  bad({{"rms_norm_eps", "small"}}, "where a number belongs");
  bad({{"tie_word_embeddings", 1}}, "where true or false belongs");
  bad({{"hidden_act", 1}}, "where a text belongs");
  bad({{"rope_theta", 0}}, "\"rope_theta\" is 0");
  bad({{"rope_scaling", 4}}, "\"rope_scaling\" is no object");
  bad({{"rope_scaling", {{"type", "linear"}}}}, "\"rope_scaling.factor\" is missing");
  bad({{"rope_scaling", {{"type", "llama3"}, {"factor", 2}, {"low_freq_factor", 4},
                         {"high_freq_factor", 4}}}}, "\"rope_scaling.high_freq_factor\" is 4");
  refused(json::array(), ErrorCode::bad_file, "no JSON object");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
