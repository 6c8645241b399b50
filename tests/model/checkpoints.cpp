// Shows that each family and feature is computed as transformers computes it: one tiny random model
// for each, every position's logits (scripts/fixtures/checkpoints.py checks that each
// feature changes the logits by more than 0.5); their weights are floats, for with quantized ones
// products round what they read. And that how a prompt is cut into batches, and what
// else is in them, changes no bit of its logits.
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <memory>

#include "tests/model/logits_check.hpp"
#include "tests/places.hpp"

namespace sluice::model {
namespace {

using testing::LoadedModel;

const std::vector<std::string> names = {
    "plain",     "grouped_heads",   "tied_embeddings", "rope_base",      "rope_linear",
    "rope_yarn", "rope_yarn_betas", "rope_llama3",     "sliding_window", "wide_heads",
    "biases",    "qwen2",           "qwen3",           "gemma2",         "gemma3"};

std::string path_of(const std::string& name, const char* ending) {
  return tests::fixtures_folder() + "/checkpoints/" + name + ending;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(checkpoints)

BOOST_AUTO_TEST_CASE(logits_match_transformers) {
  for (const std::string& name : names) {
    BOOST_TEST_CONTEXT(name) {
      testing::check_logits(path_of(name, ".gguf"), path_of(name, ".bin"));
    }
  }
}

BOOST_AUTO_TEST_CASE(logits_do_not_depend_on_the_batch) {
  for (const std::string& name : names) {
    BOOST_TEST_CONTEXT(name) {
      testing::WordReader fixture(path_of(name, ".bin"));
      fixture.u32s(2);
      const auto tokens = fixture.u32s(45);
      for (const std::string& backend : testing::all_backends()) {
        LoadedModel model(path_of(name, ".gguf"), 128, 2, nullptr, backend);
        testing::check_invariance(model, tokens);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(layers_in_8_bits) {
  for (const char* name : {"grouped_heads", "biases", "gemma3"}) {
    BOOST_TEST_CONTEXT(name) {
      testing::check_logits(path_of(name, ".gguf"), path_of(name, ".fp8.bin"), nullptr,
                            testing::emulated, Quantization::fp8);
      // Counted as they are kept, for the limit that a benchmark shows.
      LoadedModel whole(path_of(name, ".gguf"), 128, 2, nullptr, testing::emulated);
      LoadedModel model(path_of(name, ".gguf"), 128, 2, nullptr, testing::emulated,
                        Quantization::fp8);
      BOOST_TEST(model.decoder.weight_bytes < whole.decoder.weight_bytes);
    }
  }
}

// An element is off by 2^-4 of itself at most, by 2.6 % in the mean of squares, and so is what
// attention adds to the residual in a layer; logits' own deviation is about 1. Measured emulated:
// 0.037 to 0.164.
BOOST_AUTO_TEST_CASE(keys_and_values_in_8_bits) {
  for (const std::string& backend : testing::all_backends()) {
    if (backend == "cpu") continue;
    for (const std::string& name : names) {
      testing::WordReader fixture(path_of(name, ".bin"));
      const std::uint32_t positions = fixture.u32s(2)[0];
      const auto tokens = fixture.u32s(positions);
      const auto load = [&](kernels::KvFormat format) {
        return std::make_unique<LoadedModel>(path_of(name, ".gguf"), 128, 2, nullptr, backend,
                                             Quantization::none, format);
      };
      const auto whole = load(kernels::KvFormat::f16), narrow = load(kernels::KvFormat::e4m3);
      std::vector<float> expected;
      whole->every_row(tokens, 48, [&](std::size_t, auto logits) {
        expected.insert(expected.end(), logits.begin(), logits.end());
      });
      double squares = 0;
      narrow->every_row(tokens, 48, [&](std::size_t at, auto logits) {
        for (std::size_t i = 0; i < logits.size(); ++i) {
          const double off = double{logits[i]} - double{expected[at * logits.size() + i]};
          squares += off * off;
        }
      });
      const double deviation = std::sqrt(squares / static_cast<double>(expected.size()));
      BOOST_TEST_MESSAGE(name << ": " << deviation);
      BOOST_TEST_CONTEXT(name << " on " << backend) {
        BOOST_TEST(deviation > 0.0);
        BOOST_TEST(deviation < 0.25);
        testing::check_invariance(*narrow, {tokens.begin(), tokens.begin() + 45});
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(quantizations_by_name) {
  BOOST_CHECK(find_quantization("").value() == Quantization::none);
  BOOST_CHECK(find_quantization("fp8").value() == Quantization::fp8);
  BOOST_CHECK(find_quantization("fp9").error().code == ErrorCode::bad_request);
}

BOOST_AUTO_TEST_CASE(the_cpu_refuses_8_bits_and_names_the_tensor) {
  const auto file = testing::require(open_checkpoint(path_of("plain", ".gguf")));
  const auto config = testing::require(file->config());
  const auto backend = testing::require(
      testing::make_backend("cpu", 1, [](kernels::StepResult&&) {}));
  const auto decoder = load_decoder(*file, config, *backend, {}, {}, Quantization::fp8);
  BOOST_REQUIRE(!decoder);
  BOOST_CHECK(decoder.error().code == ErrorCode::unsupported);
  BOOST_TEST(decoder.error().message.find("attn_q") != std::string::npos,
             decoder.error().message);
}

BOOST_AUTO_TEST_CASE(logits_of_a_real_model_do_not_depend_on_the_batch) {
  std::vector<Token> tokens;
  for (Token i = 0; i < 40; ++i) tokens.push_back(1000 + 997 * i);
  for (const std::string& backend : testing::usable_backends()) {
    const std::string path = tests::model_file("SmolLM2-135M-Instruct-Q4_1.gguf");
    LoadedModel model(path, 128, 2, nullptr, backend);
    testing::check_invariance(model, tokens);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
