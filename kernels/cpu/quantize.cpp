#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <limits>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/quantize.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// The largest of |x|'s bit patterns: NaNs are above infinity, which is above all that is finite.
HWY_INLINE std::int32_t largest_bits(const Lanes& x) {
  const auto magnitude = [](Part part) HWY_ATTR {
    return hn::And(hn::BitCast(I(), part), hn::Set(I(), 0x7FFFFFFF));
  };
  auto most = magnitude(x.part[0]);
  for (std::size_t i = 1; i < parts; ++i) most = hn::Max(most, magnitude(x.part[i]));
  return hn::GetLane(hn::MaxOfLanes(I(), most));
}

/// Rounds sixteen values; returns the sum of the integers.
HWY_INLINE std::int32_t round_block(const Lanes& x, float inverse, std::int8_t* to) {
  constexpr float round = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const hn::Rebind<std::int8_t, F> i8;
  auto sum = hn::Zero(I());
  for (std::size_t i = 0; i < parts; ++i) {
    const Part scaled = hn::Mul(x.part[i], hn::Set(F(), inverse));
    const Part whole = hn::Sub(hn::Add(scaled, hn::Set(F(), round)), hn::Set(F(), round));
    const auto integers = hn::ConvertTo(I(), whole);
    sum = hn::Add(sum, integers);
    hn::StoreU(hn::DemoteTo(i8, integers), i8, to + i * part_lanes);
  }
  return hn::GetLane(hn::SumOfLanes(I(), sum));
}

void quantize(const float* x, std::uint32_t first, std::uint32_t last,
              const cpu::QuantizedView& view, std::size_t r) {
  constexpr std::int32_t infinity = 0x7F800000;
  constexpr float tiny = 1e-30F;  // below, 127 / largest would not be finite
  const cpu::QuantizedRow row = view.row(r);
  auto* values = const_cast<std::int8_t*>(row.values);
  auto* steps = const_cast<float*>(row.steps);
  auto* sums = const_cast<float*>(row.sums);
  auto* pair_sums = const_cast<float*>(row.pair_sums);
  for (std::size_t k = first; k < last; k += 16) {
    const Lanes block = load(x + k);
    const std::int32_t bits = largest_bits(block);
    const float largest = float_of(static_cast<std::uint32_t>(bits));
    float step = 0, inverse = 0;
    if (bits >= infinity) {
      step = std::numeric_limits<float>::quiet_NaN();
    } else if (largest > tiny) {
      step = largest / 127.0F;
      inverse = 127.0F / largest;
    }
    if (bits >= infinity) {
      std::memset(values + k, 0, 16);
      sums[k / 16] = step;
    } else {
      sums[k / 16] = step * static_cast<float>(round_block(block, inverse, values + k));
    }
    steps[k / 16] = step;
    if (k % 32 != 0) pair_sums[k / 32] = sums[k / 16 - 1] + sums[k / 16];
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(quantize);

namespace cpu {

void quantize(const float* x, std::uint32_t first, std::uint32_t last, const QuantizedView& to,
              std::size_t r) {
  HWY_DYNAMIC_DISPATCH(kernels::quantize)(x, first, last, to, r);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
