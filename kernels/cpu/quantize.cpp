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

/// The sum of sixteen bytes.
HWY_INLINE std::int32_t sum_bytes(const std::int8_t* values) {
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  // Sums of absolute differences from -128, eight at a time.
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  const __m128i sums = _mm_sad_epu8(_mm_xor_si128(all, _mm_set1_epi8(-128)), _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
#else
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < 16; ++i) sum += values[i];
  return sum;
#endif
}

/// Rounds sixteen values.
HWY_INLINE void round_block(const Lanes& x, float inverse, std::int8_t* to) {
  constexpr float round = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const hn::Rebind<std::int8_t, F> i8;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    const Part scaled = hn::Mul(x.part[i], hn::Set(F(), inverse));
    const Part whole = hn::Sub(hn::Add(scaled, hn::Set(F(), round)), hn::Set(F(), round));
    hn::StoreU(hn::DemoteTo(i8, hn::ConvertTo(I(), whole)), i8, to + i * part_lanes);
  });
}

void quantize(const float* x, std::uint32_t first, std::uint32_t last,
              const cpu::QuantizedView& view, std::size_t r) {
  constexpr std::uint32_t infinity = 0x7F800000U;
  constexpr float tiny = 1e-30F;  // below, 127 / largest would not be finite
  cpu::QuantizedBlock* blocks = view.row(r);
  // Pass by pass, so that no block waits for the one before.
  for (std::size_t k = first; k < last; k += 16) {
    blocks[k / 32].steps[k / 16 % 2] =
        float_of(static_cast<std::uint32_t>(largest_bits(load(x + k))));
  }
  for (std::size_t k = first; k < last; k += 16) {
    cpu::QuantizedBlock& block = blocks[k / 32];
    float& at = block.steps[k / 16 % 2];
    const float largest = at;
    const bool finite = bits_of(largest) < infinity;
    const float inverse = finite && largest > tiny ? 127.0F / largest : 0.0F;
    const float step = largest > tiny ? largest / 127.0F : 0.0F;
    at = finite ? step : std::numeric_limits<float>::quiet_NaN();
    if (finite) {
      round_block(load(x + k), inverse, block.values + k % 32);
    } else {
      std::memset(block.values + k % 32, 0, 16);
    }
  }
  for (std::size_t b = first / 32; b < last / 32; ++b) {
    cpu::QuantizedBlock& block = blocks[b];
    for (std::size_t i = 0; i < 2; ++i) {
      const std::int32_t sum = sum_bytes(block.values + 16 * i);
      block.sums[i] = block.steps[i] * static_cast<float>(sum);
      block.starts_8[i] = -8 * sum;
      block.starts_128[i] = -128 * sum;
    }
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
  HWY_DYNAMIC_DISPATCH(quantize)(x, first, last, to, r);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
