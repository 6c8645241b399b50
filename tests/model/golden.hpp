#pragma once
// Compares a real model's logits at every position of the prompts of a fixture that
// scripts/fixtures/golden_logits.py made.

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <optional>
#include <span>
#include <string>

#include "tests/model/loaded_model.hpp"
#include "tests/places.hpp"

namespace sluice::model::testing {

/// How far logits may be from the reference.
struct Allowed {
  double worst = 0;      ///< of any logit
  double deviation = 0;  ///< root mean square over all

  /// Between two logits whose order is sure: four deviations of a difference.
  double margin() const { return 4 * 1.42 * deviation; }
};

struct Golden {
  std::string fixture;
  std::string model;  ///< its file
  std::uint32_t prompts = 0;
  /// Of them, how many (the first) run under the address sanitizer, which is slow; 0: all.
  std::uint32_t prompts_sanitized = 0;
  std::uint32_t prompts_emulated = 0;  ///< of them, on the emulated device
  std::size_t positions_min = 0;
  std::size_t sure_min = 0;  ///< positions whose best token no deviation turns
  std::uint32_t context_tokens = 0;
  /// Of fewer positions, whose worst difference is the larger is chance.
  std::uint32_t worst_positions_min = 0;
  std::size_t top = 0;  ///< best tokens that the fixture has of each position
  Allowed allowed;
  /// Instead, on a device that rounds what every product reads to bf16.
  std::optional<Allowed> allowed_bf16 = std::nullopt;
  /// llama.cpp rounds the same in most products, and chance says which is nearer in one prompt:
  /// they are compared over all positions of all prompts alone, and of backends the CPU's alone.
  bool rounds_alike = false;

  std::uint32_t prompts_run(const std::string& backend) const {
    if (backend == emulated) return prompts_emulated;
#if defined(__SANITIZE_ADDRESS__)
    if (prompts_sanitized != 0) return prompts_sanitized;
#endif
    return prompts;
  }
};

/// Of fewer positions, which of two roundings is nearer is chance.
inline constexpr std::uint32_t positions_compared = 5;

/// So much more of a single prompt is chance too, in the deviation and in the worst difference:
/// another order of sums turns roundings, and has moved one prompt's from 0.25 to 0.45. Of all
/// prompts together nothing is.
inline constexpr double rms_chance = 1.5, worst_chance = 1.5;

struct Deviation {
  double worst = 0;
  double square_sum = 0;
  std::size_t count = 0;

  void add(double difference) {
    worst = std::max(worst, std::abs(difference));
    square_sum += difference * difference;
    ++count;
  }
  double rms() const { return std::sqrt(square_sum / static_cast<double>(count)); }
};

inline double log_sum_exp(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

inline void check_golden(const Golden& golden, const std::string& backend) {
  WordReader fixture(tests::fixtures_folder() + "/golden/" + golden.fixture + ".bin");
  LoadedModel model(golden.model, golden.context_tokens, 2, nullptr, backend);
  const bool bf16 = model.backend->device().bf16_products;
  const Allowed allowed = bf16 ? golden.allowed_bf16.value_or(golden.allowed) : golden.allowed;
  const std::uint32_t prompts = fixture.u32();
  const auto fixed = fixture.u32s(fixture.u32());
  BOOST_TEST(prompts == golden.prompts);
  std::size_t positions = 0;
  std::size_t sure = 0;
  Deviation all, sums, probabilities;
  double llama_square_sum = 0;
  for (std::uint32_t prompt = 0; prompt < golden.prompts_run(backend); ++prompt) {
    const std::uint32_t count = fixture.u32();
    const double llama_worst = fixture.f32();
    const double llama_rms = fixture.f32();
    const auto tokens = fixture.u32s(count);
    Deviation apart;
    model.every_row(tokens, LoadedModel::rows_max, [&](std::size_t at, auto logits) {
      const double sum = fixture.f32();
      auto ids = fixture.u32s(golden.top);
      ids.insert(ids.end(), fixed.begin(), fixed.end());
      const auto expected = fixture.f32s(ids.size());
      for (std::size_t i = 0; i < ids.size(); ++i) {
        apart.add(logits[ids[i]] - expected[i]);
        all.add(logits[ids[i]] - expected[i]);
      }
      const double shift = log_sum_exp(logits) - sum;
      sums.add(shift);
      for (std::size_t i = 0; i < ids.size(); ++i) {
        probabilities.add(logits[ids[i]] - expected[i] - shift);
      }
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      if (expected[0] - expected[1] > allowed.margin()) {
        BOOST_TEST(best == ids[0], "prompt " << prompt << ", position " << at << ": token " << best
                                             << " instead of " << ids[0]);
        ++sure;
      }
      ++positions;
    });
    BOOST_TEST_MESSAGE("prompt " << prompt << ": worst " << apart.worst << " (llama.cpp "
                                 << llama_worst << "), rms " << apart.rms() << " (llama.cpp "
                                 << llama_rms << ")");
    BOOST_TEST(apart.worst <= allowed.worst);
    if (!golden.rounds_alike) {
      if (count >= golden.worst_positions_min) {
        BOOST_TEST(apart.worst <= worst_chance * llama_worst);
      }
      if (count >= positions_compared) BOOST_TEST(apart.rms() <= rms_chance * llama_rms);
    }
    llama_square_sum += llama_rms * llama_rms * static_cast<double>(apart.count);
  }
  BOOST_TEST_MESSAGE(backend << ", " << golden.fixture << ": " << positions << " positions, "
                             << sure << " sure; worst " << all.worst << ", rms " << all.rms()
                             << ", of sums of exponentials " << sums.rms()
                             << ", of logarithms of probabilities " << probabilities.rms());
  const double llama = std::sqrt(llama_square_sum / static_cast<double>(all.count));
  BOOST_TEST_MESSAGE("llama.cpp over all: rms " << llama);
  const bool some = golden.prompts_run(backend) < prompts;
  if (!golden.rounds_alike || (!some && !bf16)) BOOST_TEST(all.rms() <= llama);
  if (some) return;
  BOOST_TEST(all.rms() <= allowed.deviation);
  BOOST_TEST(sums.rms() <= allowed.deviation);
  BOOST_TEST(probabilities.rms() <= allowed.deviation);
  BOOST_TEST(fixture.at_end());
  BOOST_TEST(positions > golden.positions_min);
  BOOST_TEST(sure > golden.sure_min);
}

/// No logit off by more than the tolerance, all prompts together no further off than llama.cpp is,
/// and each hardly further; the same best token wherever the reference is sure of it; on every
/// backend that is here and is wanted.
inline void check_golden(const Golden& golden) {
  for (const std::string& backend : usable_backends()) {
    BOOST_TEST_CONTEXT(backend) { check_golden(golden, backend); }
  }
}

}  // namespace sluice::model::testing
