// Shows that each family and feature is computed as transformers computes it: one tiny random model
// for each, every position's logits (scripts/fixtures/checkpoints.py checks that each
// feature changes the logits by more than 0.5); their weights are floats, for with quantized ones
// products round what they read. And that how a prompt is cut into batches, and what
// else is in them, changes no bit of its logits.
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "tests/model/loaded_model.hpp"

namespace sluice::model {
namespace {

using kernels::Path;
using testing::LoadedModel;
using testing::Part;

// Ours differs from the reference by rounding keys and values to f16 (relative 2^-11) and by the
// order of float32 sums; the logits' deviation is about 1, the worst difference measured 0.009. A
// feature left out moves some logit by more than 0.5.
constexpr double tolerance = 0.02;

const std::vector<std::string> names = {
    "plain",           "grouped_heads", "tied_embeddings", "rope_base",
    "rope_linear",     "rope_yarn",     "rope_yarn_betas", "rope_llama3",
    "sliding_window",  "wide_heads",    "biases",          "qwen2",
    "qwen3",           "gemma2",        "gemma3"};

std::string path_of(const std::string& name, const char* ending) {
  return fmt::format("{}/checkpoints/{}{}", SLUICE_FIXTURES, name, ending);
}

void check_logits(const std::string& name) {
  testing::WordReader fixture(path_of(name, ".bin"));
  LoadedModel model(path_of(name, ".gguf"));
  const std::uint32_t positions = fixture.u32();
  const std::uint32_t vocabulary = fixture.u32();
  BOOST_REQUIRE_EQUAL(model.config.vocabulary, vocabulary);
  const auto tokens = fixture.u32s(positions);
  double worst = 0;
  std::size_t sure = 0;
  model.every_row(tokens, 48, [&](std::size_t at, auto logits) {
    const auto expected = fixture.f32s(vocabulary);
    for (std::uint32_t i = 0; i < vocabulary; ++i) {
      worst = std::max(worst, std::abs(double{logits[i]} - double{expected[i]}));
    }
    auto sorted = expected;
    std::sort(sorted.rbegin(), sorted.rend());
    if (sorted[0] - sorted[1] <= 2 * tolerance) return;
    ++sure;
    const auto due = std::max_element(expected.begin(), expected.end()) - expected.begin();
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    BOOST_TEST(best == due, "another token at position " << at);
  });
  BOOST_TEST(fixture.at_end());
  BOOST_TEST_MESSAGE(name << ": worst " << worst << ", " << sure << " sure positions");
  BOOST_TEST(worst <= tolerance);
  BOOST_TEST(sure > positions / 2);
}

/// The last row's logits after `cuts` of the prompt, each a step of its own.
std::vector<float> in_chunks(LoadedModel& model, const std::vector<Token>& tokens,
                             const std::vector<std::uint32_t>& cuts, Path last_path) {
  model.open(0, tokens);
  std::uint32_t at = 0;
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    const bool last = i + 1 == cuts.size();
    if (last) model.close(0);
    model.run({Part{0, at, cuts[i], last, last ? last_path : Path::prompt}});
    at += cuts[i];
  }
  BOOST_REQUIRE_EQUAL(at, tokens.size());
  return model.sampled_logits(0);
}

/// The same prompt between two others, one of which is sampled too.
std::vector<float> among_others(LoadedModel& model, const std::vector<Token>& tokens) {
  const std::vector<Token> first(tokens.rbegin(), tokens.rend());
  const std::vector<Token> second(tokens.begin() + 3, tokens.begin() + 9);
  const auto half = static_cast<std::uint32_t>(tokens.size() / 2);
  const auto rest = static_cast<std::uint32_t>(tokens.size() - half);
  model.open(0, first);
  model.run({Part{0, 0, 7}});
  model.open(1, second);
  model.open(2, tokens);
  model.run({Part{1, 0, 5}, Part{2, 0, half}, Part{0, 7, 1, false, Path::decode}});
  for (const kernels::SlotIndex slot : {0U, 1U, 2U}) model.close(slot);
  model.run({Part{0, 8, 3}, Part{1, 5, 1, true, Path::decode}, Part{2, half, rest, true}});
  return model.sampled_logits(1);
}

void check_invariance(LoadedModel& model, const std::vector<Token>& tokens) {
  const auto n = static_cast<std::uint32_t>(tokens.size());
  std::vector<float> by_rows;
  model.every_row(tokens, n, [&](std::size_t at, auto logits) {
    if (at + 1 == n) by_rows.assign(logits.begin(), logits.end());
  });
  const auto whole = in_chunks(model, tokens, {n}, Path::prompt);
  BOOST_TEST((whole == by_rows));
  BOOST_TEST((whole == in_chunks(model, tokens, {1, 16, n - 20, 3}, Path::prompt)));
  BOOST_TEST((whole == in_chunks(model, tokens, {n - 1, 1}, Path::decode)));
  BOOST_TEST((whole == in_chunks(model, tokens, std::vector<std::uint32_t>(n, 1), Path::decode)));
  BOOST_TEST((whole == among_others(model, tokens)));
  auto changed = tokens;
  changed[n - 4] ^= 1U;  // within every window
  BOOST_TEST((whole != in_chunks(model, changed, {n}, Path::prompt)));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(checkpoints)

BOOST_AUTO_TEST_CASE(logits_match_transformers) {
  for (const std::string& name : names) {
    BOOST_TEST_CONTEXT(name) { check_logits(name); }
  }
}

BOOST_AUTO_TEST_CASE(logits_do_not_depend_on_the_batch) {
  for (const std::string& name : names) {
    BOOST_TEST_CONTEXT(name) {
      testing::WordReader fixture(path_of(name, ".bin"));
      LoadedModel model(path_of(name, ".gguf"));
      fixture.u32s(2);
      check_invariance(model, fixture.u32s(45));
    }
  }
}

BOOST_AUTO_TEST_CASE(logits_of_a_real_model_do_not_depend_on_the_batch) {
  LoadedModel model(SLUICE_MODELS "/SmolLM2-135M-Instruct-Q4_1.gguf");
  std::vector<Token> tokens;
  for (Token i = 0; i < 40; ++i) tokens.push_back(1000 + 997 * i);
  check_invariance(model, tokens);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
