// Shows that the decoder on the CPU backend computes SmolLM2: the logits of every position of 20
// prompts against transformers in float32 (scripts/fixtures/golden_logits.py), no further from it
// than llama.cpp is on the same file, the same best token wherever the reference is sure of it.
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "tests/model/loaded_model.hpp"

namespace sluice::model {
namespace {

using testing::LoadedModel;

// Ours differs from the reference by rounding what products read to 8 bits (steps of sixteen
// columns), over 30 layers; logits reach 47. The worst difference measured is 1.8, the deviation
// 0.17; llama.cpp, with steps of 32 columns, has 2.1 and 0.24.
constexpr double tolerance = 2.0;
constexpr double deviation = 0.2;
/// Four deviations of a difference of two logits.
constexpr double margin = 4 * 1.42 * deviation;
/// Of fewer positions, which of two roundings is nearer is chance.
constexpr std::uint32_t positions_compared = 5;

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

double log_sum_exp(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(golden)

BOOST_AUTO_TEST_CASE(logits_of_every_position_match_the_reference) {
  constexpr std::size_t top = 16;
  testing::WordReader fixture(SLUICE_FIXTURES "/golden/smollm2.bin");
  LoadedModel model(SLUICE_MODELS "/SmolLM2-135M-Instruct-Q4_1.gguf", 512);
  const std::uint32_t prompts = fixture.u32();
  const auto fixed = fixture.u32s(fixture.u32());
  BOOST_TEST(prompts == 20U);
  std::size_t positions = 0;
  std::size_t sure = 0;
  Deviation all, sums;
  double llama_square_sum = 0;
  for (std::uint32_t prompt = 0; prompt < prompts; ++prompt) {
    const std::uint32_t count = fixture.u32();
    const double llama_worst = fixture.f32();
    const double llama_rms = fixture.f32();
    const auto tokens = fixture.u32s(count);
    Deviation apart;
    model.every_row(tokens, LoadedModel::rows_max, [&](std::size_t at, auto logits) {
      const double sum = fixture.f32();
      auto ids = fixture.u32s(top);
      ids.insert(ids.end(), fixed.begin(), fixed.end());
      const auto expected = fixture.f32s(ids.size());
      for (std::size_t i = 0; i < ids.size(); ++i) {
        apart.add(logits[ids[i]] - expected[i]);
        all.add(logits[ids[i]] - expected[i]);
      }
      sums.add(log_sum_exp(logits) - sum);
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      if (expected[0] - expected[1] > margin) {
        BOOST_TEST(best == ids[0], "prompt " << prompt << ", position " << at << ": token "
                                             << best << " instead of " << ids[0]);
        ++sure;
      }
      ++positions;
    });
    BOOST_TEST_MESSAGE("prompt " << prompt << ": worst " << apart.worst << " (llama.cpp "
                                 << llama_worst << "), rms " << apart.rms() << " (llama.cpp "
                                 << llama_rms << ")");
    BOOST_TEST(apart.worst <= tolerance);
    if (count >= positions_compared) {
      BOOST_TEST(apart.worst <= llama_worst);
      BOOST_TEST(apart.rms() <= llama_rms);
    }
    llama_square_sum += llama_rms * llama_rms * static_cast<double>(apart.count);
  }
  BOOST_TEST(fixture.at_end());
  BOOST_TEST_MESSAGE(positions << " positions, " << sure << " sure; worst " << all.worst
                               << ", rms " << all.rms());
  BOOST_TEST(all.rms() <= deviation);
  BOOST_TEST(all.rms() <= std::sqrt(llama_square_sum / static_cast<double>(all.count)));
  BOOST_TEST(sums.rms() <= deviation);
  BOOST_TEST(positions > 700U);
  BOOST_TEST(sure > positions / 3);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::model
