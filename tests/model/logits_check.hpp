#pragma once
// What every model of the tests is held to: the reference's logits, and that batching changes none.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "tests/model/loaded_model.hpp"

namespace sluice::model::testing {

using kernels::Path;

// Ours differs from the reference by rounding keys and values to f16 (relative 2^-11) and by the
// order of float32 sums; the logits' deviation is about 1, the worst difference measured 0.009. A
// feature left out moves some logit by more than 0.5.
inline constexpr double tolerance = 0.02;

/// Compares the logits of every position with those of `fixture` (scripts/fixtures/checkpoints.py).
/// Where products round what they read to bf16, they are held to how far transformers is off then.
inline void check_logits(const std::string& path, const std::string& fixture_path,
                         const std::shared_ptr<kernels::Communicator>& group,
                         const std::string& backend = "cpu",
                         Quantization quantization = Quantization::none) {
  WordReader fixture(fixture_path);
  LoadedModel model(path, 128, group == nullptr ? 2 : 1, group, backend, quantization);
  const std::uint32_t positions = fixture.u32();
  const std::uint32_t vocabulary = fixture.u32();
  BOOST_REQUIRE_EQUAL(model.config.vocabulary, vocabulary);
  const auto tokens = fixture.u32s(positions);
  const auto logits_expected = fixture.f32s(std::size_t{positions} * vocabulary);
  const double transformers_bf16 = fixture.f32();
  BOOST_TEST(fixture.at_end());
  const kernels::DeviceInfo& device = model.backend->device();
  const Tensor* matrix = model.file->find_tensor("blk.0.attn_q.weight");
  BOOST_REQUIRE(matrix != nullptr);
  const bool bf16 = device.bf16_products ||
                    (device.bf16_inputs && matrix->format == kernels::Format::bf16);
  const double allowed = bf16 ? transformers_bf16 : tolerance;
  double worst = 0;
  std::size_t sure = 0;
  model.every_row(tokens, 48, [&](std::size_t at, auto logits) {
    const auto expected = std::vector(logits_expected.begin() + at * vocabulary,
                                      logits_expected.begin() + (at + 1) * vocabulary);
    for (std::uint32_t i = 0; i < vocabulary; ++i) {
      worst = std::max(worst, std::abs(double{logits[i]} - double{expected[i]}));
    }
    auto sorted = expected;
    std::sort(sorted.rbegin(), sorted.rend());
    if (sorted[0] - sorted[1] <= 2 * allowed) return;
    ++sure;
    const auto due = std::max_element(expected.begin(), expected.end()) - expected.begin();
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    BOOST_TEST(best == due, "another token at position " << at);
  });
  BOOST_TEST_MESSAGE(path << ": worst " << worst << ", " << sure << " sure positions");
  BOOST_TEST(worst <= allowed);
  BOOST_TEST(sure > positions / (bf16 ? 8 : 2));
}

/// The same on every backend that there is, and on the emulated one.
inline void check_logits(const std::string& path, const std::string& fixture_path) {
  for (const std::string& backend : all_backends()) {
    BOOST_TEST_CONTEXT(backend) { check_logits(path, fixture_path, nullptr, backend); }
  }
}

/// The last row's logits after `cuts` of the prompt, each a step of its own.
inline std::vector<float> in_chunks(LoadedModel& model, const std::vector<Token>& tokens,
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
inline std::vector<float> among_others(LoadedModel& model, const std::vector<Token>& tokens) {
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

inline void check_invariance(LoadedModel& model, const std::vector<Token>& tokens) {
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

}  // namespace sluice::model::testing
