// The functions of a layer's rows against their scalar form, which is what their bits are: on every
// instruction set, at both ends of what they take, and of NaN.

#include "tests/kernels/cpu_targets.hpp"
// The targets must be chosen before Highway's headers.
#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/layer_ops.hpp"
#include "kernels/elementary.hpp"

namespace sluice::kernels::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// A whole number of sixteens.
std::vector<float> arguments() {
  std::vector<float> all{0.0F, -0.0F, 1e-40F, 88.0F, 88.5F, -86.5F, -86.6F, 1e30F, -1e30F,
                         infinity, -infinity};
  for (const std::uint32_t bits : {0x7FC00000U, 0xFFC00000U, 0x7FC00001U, 0xFFFFFFFFU}) {
    all.push_back(std::bit_cast<float>(bits));  // NaN, with low bits and without
  }
  for (float x = -100.0F; x < 100.0F; x += 0.37F) all.push_back(x);
  all.resize((all.size() + 15) / 16 * 16);
  return all;
}

/// To the bit, or both NaN.
bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<std::uint32_t>(a) ==
                                             std::bit_cast<std::uint32_t>(b);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(layer_ops)

BOOST_AUTO_TEST_CASE(a_capped_row_is_its_scalars) {
  const std::vector<float> in = arguments();
  constexpr float cap = 30.0F;
  on_every_target([&] {
    std::vector<float> out = in;
    cpu::soft_cap_row(cap, 0, static_cast<std::uint32_t>(out.size()), out.data());
    for (std::size_t i = 0; i < in.size(); ++i) {
      const float expected = tanh_f32(in[i] * (1.0F / cap)) * cap;
      BOOST_TEST(same(out[i], expected), out[i] << " of " << in[i] << ", not " << expected);
      BOOST_TEST(std::isnan(out[i]) == std::isnan(in[i]));
    }
  });
}

BOOST_AUTO_TEST_CASE(a_gated_row_is_its_scalars) {
  std::vector<float> in = arguments();
  const auto width = static_cast<std::uint32_t>(in.size());
  in.resize(2 * width, 0.75F);
  on_every_target([&] {
    std::vector<float> out(width);
    cpu::gate_row(in.data(), Activation::silu, width, 0, width, out.data());
    for (std::size_t i = 0; i < width; ++i) {
      const float expected = in[i] / (1.0F + exp_f32(0.0F - in[i])) * 0.75F;
      BOOST_TEST(same(out[i], expected), out[i] << " of " << in[i] << ", not " << expected);
    }
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
