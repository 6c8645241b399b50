// Shows that a model's configuration is read from GGUF metadata: the values and their defaults,
// each rope scaling against numbers worked out from its paper, and a typed refusal that names the
// key for everything that is missing, impossible or not computed here.
#include "model/config.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>

#include "model/decoder.hpp"
#include "tests/model/tiny_llama.hpp"
#include "tests/places.hpp"

namespace sluice::model {
namespace {

using testing::GgufBuilder;
using testing::of_family;
using testing::ParsedTiny;
using testing::TinyLlama;

ModelConfig config_of(const TinyLlama& tiny) {
  const ParsedTiny parsed(tiny);
  auto config = read_config(*parsed.file);
  BOOST_REQUIRE_MESSAGE(config, config.error().message);
  return std::move(*config);
}

void refused(const TinyLlama& tiny, ErrorCode code, const std::string& part) {
  const ParsedTiny parsed(tiny);
  const auto config = read_config(*parsed.file);
  BOOST_REQUIRE_MESSAGE(!config, "accepted, where '" << part << "' was due");
  BOOST_TEST(to_string(config.error().code) == to_string(code));
  BOOST_TEST(config.error().message.starts_with("tiny.gguf: "));
  BOOST_TEST(config.error().message.find(part) != std::string::npos,
             "'" << part << "' is missing in: " << config.error().message);
}

/// 10000^(-2i/8), the plain frequencies of the tiny model.
double plain(int pair) { return std::pow(10000.0, -2.0 * pair / 8); }

void check_frequencies(const RopeConfig& rope, const std::vector<double>& expected) {
  BOOST_REQUIRE_EQUAL(rope.inverse_frequencies.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    BOOST_TEST(std::abs(rope.inverse_frequencies[i] / expected[i] - 1) < 1e-6, "pair " << i);
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(config)

BOOST_AUTO_TEST_CASE(reads_a_plain_model) {
  const ModelConfig plain_model = config_of(TinyLlama());
  BOOST_TEST(plain_model.architecture == "llama");
  BOOST_TEST(plain_model.name == "tiny");
  BOOST_TEST(plain_model.layers == 2U);
  BOOST_TEST(plain_model.hidden == 32U);
  BOOST_TEST(plain_model.feed_forward == 64U);
  BOOST_TEST(plain_model.heads.heads == 4U);
  BOOST_TEST(plain_model.heads.kv_heads == 2U);
  BOOST_TEST(plain_model.heads.head_dim == 8U);
  BOOST_TEST(plain_model.vocabulary == 40U);
  BOOST_TEST(plain_model.context_tokens == 256U);
  BOOST_TEST(plain_model.norm_epsilon == 1e-5F);
  BOOST_TEST(plain_model.window == 0U);
  BOOST_TEST(!plain_model.tied_embeddings);
  BOOST_TEST(plain_model.rope.dimensions == 8U);
  BOOST_TEST(plain_model.rope.theta == 10000.0F);
  BOOST_TEST(plain_model.rope.magnitude == 1.0F);
  BOOST_TEST((plain_model.rope.pairs == kernels::RopePairs::adjacent));
  check_frequencies(plain_model.rope, {1, plain(1), plain(2), plain(3)});
}

BOOST_AUTO_TEST_CASE(reads_what_differs) {
  TinyLlama tiny;
  tiny.without("llama.attention.head_count_kv").without("output.weight");
  tiny.u32("llama.attention.sliding_window", 64).u32("llama.attention.key_length", 16);
  tiny.u32("llama.attention.value_length", 16).u32("llama.rope.dimension_count", 4);
  tiny.f32("llama.rope.freq_base", 500000.0F).u32("llama.vocab_size", 40);
  tiny.u32("llama.expert_count", 0).f32("llama.logit_scale", 1.0F);
  const ModelConfig config = config_of(tiny);
  BOOST_TEST(config.heads.kv_heads == 4U);
  BOOST_TEST(config.heads.head_dim == 16U);
  BOOST_TEST(config.tied_embeddings);
  BOOST_TEST(config.window == 64U);
  BOOST_TEST(config.rope.dimensions == 4U);
  check_frequencies(config.rope, {1, 1 / std::sqrt(500000.0)});
}

using Flags = std::vector<bool>;

BOOST_AUTO_TEST_CASE(reads_gemma_3) {
  TinyLlama tiny = of_family("gemma3");
  tiny.u32("gemma3.attention.key_length", 16).u32("gemma3.attention.value_length", 16);
  tiny.u32("gemma3.attention.sliding_window", 12).f32("gemma3.rope.freq_base", 1e6F);
  tiny.text("gemma3.rope.scaling.type", "linear").f32("gemma3.rope.scaling.factor", 8);
  const ModelConfig gemma = config_of(tiny);
  BOOST_TEST((gemma.activation == kernels::Activation::gelu_tanh));
  BOOST_TEST((gemma.rope.pairs == kernels::RopePairs::halves));
  BOOST_TEST(gemma.head_norms);
  BOOST_TEST(gemma.branch_norms);
  BOOST_TEST(gemma.embedding_scale == std::sqrt(32.0F));
  BOOST_TEST(gemma.attention_scale == 0.25F);  // 1 / sqrt(16), not of 32 / 4
  BOOST_TEST(gemma.attention_soft_cap == 0.0F);
  BOOST_TEST(gemma.logit_soft_cap == 0.0F);
  BOOST_TEST(gemma.window == 12U);
  BOOST_CHECK((gemma.local == Flags{true, true, true, true, true, false, true}));
  BOOST_TEST(gemma.rope.inverse_frequencies[0] == 0.125F);  // scaled
  BOOST_TEST(gemma.local_rope.theta == 10000.0F);
  BOOST_TEST(gemma.local_rope.inverse_frequencies[0] == 1.0F);
  BOOST_TEST(gemma.local_rope.inverse_frequencies[4] == 0.01F);
  tiny.f32("gemma3.rope.freq_base_swa", 100.0F);
  BOOST_TEST(config_of(tiny).local_rope.inverse_frequencies[4] == 0.1F);
  tiny.u32("gemma3.block_count", 62);  // 27B
  BOOST_TEST(config_of(tiny).attention_scale == 1 / std::sqrt(8.0F));
}

BOOST_AUTO_TEST_CASE(reads_gemma_2) {
  TinyLlama tiny = of_family("gemma2");
  const ModelConfig gemma = config_of(tiny);
  BOOST_TEST(!gemma.head_norms);
  BOOST_TEST(gemma.branch_norms);
  BOOST_TEST(gemma.attention_soft_cap == 50.0F);
  BOOST_TEST(gemma.logit_soft_cap == 30.0F);
  BOOST_TEST(gemma.window == 4096U);
  BOOST_CHECK((gemma.local == Flags{true, false, true, false, true, false, true}));
  BOOST_CHECK(gemma.local_rope.inverse_frequencies == gemma.rope.inverse_frequencies);
  tiny.f32("gemma2.attn_logit_softcapping", 20).f32("gemma2.final_logit_softcapping", 0);
  BOOST_TEST(config_of(tiny).attention_soft_cap == 20.0F);
  BOOST_TEST(config_of(tiny).logit_soft_cap == 0.0F);
  tiny.u32("gemma2.block_count", 46).u32("gemma2.attention.key_length", 2);  // 27B
  tiny.u32("gemma2.attention.value_length", 2);
  BOOST_TEST(config_of(tiny).attention_scale == 1 / std::sqrt(8.0F));
}

BOOST_AUTO_TEST_CASE(reads_qwen) {
  const ModelConfig second = config_of(of_family("qwen2"));
  BOOST_TEST((second.activation == kernels::Activation::silu));
  BOOST_TEST((second.rope.pairs == kernels::RopePairs::halves));
  BOOST_TEST(!second.head_norms);
  BOOST_TEST(!second.branch_norms);
  BOOST_TEST(second.embedding_scale == 1.0F);
  BOOST_TEST(config_of(of_family("qwen3")).head_norms);
}

BOOST_AUTO_TEST_CASE(reads_which_layers_have_the_window) {
  TinyLlama tiny;
  BOOST_CHECK((config_of(tiny).local == Flags{false, false}));
  tiny.u32("llama.attention.sliding_window", 64);
  BOOST_CHECK((config_of(tiny).local == Flags{true, true}));
  const std::string pattern = ".attention.sliding_window_pattern";
  BOOST_CHECK((config_of(tiny.u32("llama" + pattern, 1)).local == Flags{false, false}));
  BOOST_CHECK((config_of(tiny.u32("llama" + pattern, 2)).local == Flags{true, false}));
  tiny.custom("llama" + pattern, [&](GgufBuilder& file) {
    file.numbers<std::uint8_t>("llama" + pattern, testing::type_bool, {0, 1});
  });
  BOOST_CHECK((config_of(tiny).local == Flags{false, true}));
  tiny.custom("llama" + pattern, [&](GgufBuilder& file) {
    file.numbers<std::uint8_t>("llama" + pattern, testing::type_bool, {0, 1, 1});
  });
  refused(tiny, ErrorCode::bad_file, "not a flag for each of 2 layers");
  TinyLlama qwen = of_family("qwen2");
  qwen.u32("qwen2.attention.sliding_window", 8);
  refused(qwen, ErrorCode::unsupported, "does not say in which");
  BOOST_CHECK(config_of(qwen.u32("qwen2" + pattern, 4)).local[2]);
}

BOOST_AUTO_TEST_CASE(reads_scales_and_caps_of_any_family) {
  TinyLlama tiny;
  BOOST_TEST(config_of(tiny).attention_scale == 1 / std::sqrt(8.0F));
  tiny.f32("llama.attention.scale", 0.5F).f32("llama.final_logit_softcapping", 15);
  BOOST_TEST(config_of(tiny).attention_scale == 0.5F);
  BOOST_TEST(config_of(tiny).logit_soft_cap == 15.0F);
  refused(tiny.f32("llama.final_logit_softcapping", -15), ErrorCode::bad_file, "softcapping");
}

BOOST_AUTO_TEST_CASE(reads_smollm2) {
  const auto file = GgufFile::open(tests::model_file("SmolLM2-135M-Instruct-Q4_1.gguf"));
  BOOST_REQUIRE_MESSAGE(file, file.error().message << "; run scripts/fetch-model.sh");
  const auto config = read_config(**file);
  BOOST_REQUIRE_MESSAGE(config, config.error().message);
  BOOST_TEST(config->layers == 30U);
  BOOST_TEST(config->hidden == 576U);
  BOOST_TEST(config->heads.heads == 9U);
  BOOST_TEST(config->heads.kv_heads == 3U);
  BOOST_TEST(config->heads.head_dim == 64U);
  BOOST_TEST(config->vocabulary == 49152U);
  BOOST_TEST(config->rope.theta == 100000.0F);
  BOOST_TEST(config->tied_embeddings);
}

BOOST_AUTO_TEST_CASE(scales_rope_linearly) {
  TinyLlama named;
  named.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4);
  check_frequencies(config_of(named).rope, {0.25, plain(1) / 4, plain(2) / 4, plain(3) / 4});
  TinyLlama untyped;
  untyped.f32("llama.rope.scaling.factor", 4);
  check_frequencies(config_of(untyped).rope, {0.25, plain(1) / 4, plain(2) / 4, plain(3) / 4});
  TinyLlama old;
  old.f32("llama.rope.scale_linear", 2);
  check_frequencies(config_of(old).rope, {0.5, plain(1) / 2, plain(2) / 2, plain(3) / 2});
  TinyLlama none;
  none.text("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 4);
  check_frequencies(config_of(none).rope, {1, plain(1), plain(2), plain(3)});
  TinyLlama zero;
  zero.f32("llama.rope.scaling.factor", 0);
  check_frequencies(config_of(zero).rope, {1, plain(1), plain(2), plain(3)});
}

BOOST_AUTO_TEST_CASE(scales_rope_by_yarn) {
  // Pair i turns 64 * 10000^(-i/4) / 2pi times over 64 positions: 10.2, 1.02, 0.10, 0.01. Pairs are
  // kept up to floor(index of 32 turns) = 0 and interpolated from ceil(index of 1 turn) = 2 on.
  TinyLlama tiny;
  tiny.text("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4);
  tiny.u32("llama.rope.scaling.original_context_length", 64);
  const RopeConfig rope = config_of(tiny).rope;
  check_frequencies(rope, {1, plain(1) * (0.5 + 0.5 / 4), plain(2) / 4, plain(3) / 4});
  BOOST_TEST(std::abs(rope.magnitude - (1 + 0.1 * std::log(4.0))) < 1e-6);

  tiny.f32("llama.rope.scaling.attn_factor", 0.5F);
  BOOST_TEST(std::abs(config_of(tiny).rope.magnitude - 0.5 * (1 + 0.1 * std::log(4.0))) < 1e-6);
  // Twice the turns of pair 1 end the ramp at its index: pair 1 is interpolated whole.
  tiny.f32("llama.rope.scaling.yarn_beta_slow", 2.0F);
  check_frequencies(config_of(tiny).rope, {1, plain(1) / 4, plain(2) / 4, plain(3) / 4});
  tiny.f32("llama.rope.scaling.yarn_ext_factor", 0.0F);
  check_frequencies(config_of(tiny).rope, {0.25, plain(1) / 4, plain(2) / 4, plain(3) / 4});
  BOOST_TEST(config_of(tiny).rope.magnitude == 0.5F);
}

BOOST_AUTO_TEST_CASE(divides_rope_by_llama3_factors) {
  TinyLlama tiny;
  tiny.tensor("rope_freqs.weight", {{4}, kernels::Format::f32, std::byte{0x40}});
  const double divisor = std::bit_cast<float>(0x40404040U);  // 3.0039
  check_frequencies(config_of(tiny).rope,
                    {1 / divisor, plain(1) / divisor, plain(2) / divisor, plain(3) / divisor});
  tiny.tensor("rope_freqs.weight", {{3}, kernels::Format::f32, std::byte{0x40}});
  refused(tiny, ErrorCode::bad_file, "shape [3], [4] belongs there");
  tiny.tensor("rope_freqs.weight", {{4}, kernels::Format::f32, std::byte{0}});
  refused(tiny, ErrorCode::bad_file, "'rope_freqs.weight' holds 0");
  tiny.tensor("rope_freqs.weight", {{4}, kernels::Format::f32, std::byte{0xFF}});
  refused(tiny, ErrorCode::bad_file, "'rope_freqs.weight' holds");
}

BOOST_AUTO_TEST_CASE(refuses_what_is_missing) {
  for (const std::string key :
       {"general.architecture", "llama.block_count", "llama.context_length",
        "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon", "token_embd.weight"}) {
    refused(TinyLlama().without(key), ErrorCode::bad_file, "'" + key + "'");
  }
}

BOOST_AUTO_TEST_CASE(refuses_other_architectures_and_features) {
  refused(TinyLlama().text("general.architecture", "mamba"), ErrorCode::unsupported, "'mamba'");
  for (const std::string key :
       {"llama.expert_count", "llama.embedding_length_per_layer_input", "split.count"}) {
    refused(TinyLlama().u32(key, 8), ErrorCode::unsupported,
            key == "split.count" ? "8 files" : key);
  }
  for (const std::string key :
       {"llama.logit_scale", "llama.residual_scale", "llama.embedding_scale",
        "llama.attention.clamp_kqv", "llama.rope.scaling.yarn_log_multiplier"}) {
    refused(TinyLlama().f32(key, 30.0F), ErrorCode::unsupported, key);
  }
  refused(TinyLlama().custom("llama.attention.causal", [](GgufBuilder& file) {
    file.boolean("llama.attention.causal", false);
  }), ErrorCode::unsupported, "not causal");
  refused(TinyLlama().custom("llama.attention.head_count", [](GgufBuilder& file) {
    file.numbers<std::uint32_t>("llama.attention.head_count", testing::type_u32, {4, 4});
  }), ErrorCode::unsupported, "differs by layer");
  refused(TinyLlama().text("llama.rope.scaling.type", "longrope"), ErrorCode::unsupported,
          "'longrope'");
  refused(TinyLlama().u32("llama.attention.value_length", 16), ErrorCode::unsupported,
          "values of 16");
}

BOOST_AUTO_TEST_CASE(refuses_impossible_numbers) {
  const std::vector<std::pair<std::string, std::uint32_t>> counts = {
      {"llama.block_count", 0},           {"llama.block_count", 5000},
      {"llama.embedding_length", 0},      {"llama.embedding_length", 4'000'000'000},
      {"llama.feed_forward_length", 0},   {"llama.context_length", 0},
      {"llama.attention.head_count", 0},  {"llama.attention.head_count", 65536},
      {"llama.attention.head_count_kv", 0}, {"llama.attention.key_length", 0},
      {"llama.rope.dimension_count", 0},  {"llama.rope.dimension_count", 5},
      {"llama.rope.dimension_count", 10}, {"llama.vocab_size", 41}};
  for (const auto& [key, value] : counts) {
    refused(TinyLlama().u32(key, value), ErrorCode::bad_file, "'" + key + "'");
  }
  refused(TinyLlama().u32("llama.attention.head_count_kv", 3), ErrorCode::bad_file,
          "4 attention heads cannot share 3");
  refused(TinyLlama().u32("llama.attention.head_count", 6), ErrorCode::bad_file,
          "32 is no multiple of 6 heads");
  for (const float value : {-1.0F, 2.0F, std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity()}) {
    const std::string key = "llama.attention.layer_norm_rms_epsilon";
    refused(TinyLlama().f32(key, value), ErrorCode::bad_file, "'" + key + "'");
  }
  for (const float value : {0.0F, 1.0F, -10000.0F, std::numeric_limits<float>::quiet_NaN()}) {
    refused(TinyLlama().f32("llama.rope.freq_base", value), ErrorCode::bad_file, "freq_base");
  }
  refused(TinyLlama().f32("llama.rope.scaling.factor", -2), ErrorCode::bad_file, "factor");
  refused(TinyLlama().u32("llama.rope.scaling.type", 1), ErrorCode::bad_file, "must be a string");
  refused(TinyLlama().custom("tokenizer.ggml.tokens", [](GgufBuilder& file) {
    file.texts("tokenizer.ggml.tokens", {"a", "b"});
  }), ErrorCode::bad_file, "the tokenizer has 2");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
