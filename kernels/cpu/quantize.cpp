#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/quantize.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// The largest of |x|'s bit patterns: NaNs are above infinity, which is above all that is finite.
HWY_INLINE std::int32_t largest_bits(const Lanes& x) {
  return static_cast<std::int32_t>(bits_of(fold(x, [](auto a, auto b) HWY_ATTR {
    const hn::DFromV<decltype(a)> f;
    const hn::RebindToSigned<decltype(f)> i;
    const auto magnitude = [&](auto v) HWY_ATTR {
      return hn::And(hn::BitCast(i, v), hn::Set(i, 0x7FFFFFFF));
    };
    return hn::BitCast(f, hn::Max(magnitude(a), magnitude(b)));
  })));
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

/// Rounds sixteen values, of which inverse makes 127 at most.
HWY_INLINE void round_values(const Lanes& x, float inverse, std::int8_t* to) {
  // 1.5 * 2^23: adding it rounds to an integer, of which the last bits are then the bits.
  const Part round = hn::Set(F(), 12582912.0F);
  const hn::RebindToUnsigned<I> u32;
  const hn::Rebind<std::uint8_t, F> u8;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    const Part whole = hn::Add(hn::Mul(x.part[i], hn::Set(F(), inverse)), round);
    auto* bytes = reinterpret_cast<std::uint8_t*>(to) + i * part_lanes;
    hn::StoreU(hn::TruncateTo(u8, hn::BitCast(u32, whole)), u8, bytes);
  });
}

void quantize(const float* x, std::uint32_t first, std::uint32_t last,
              const cpu::QuantizedView& view, std::size_t r) {
  constexpr std::int32_t infinity = 0x7F800000, power = 1 << 23, one = 127 * power;
  constexpr std::int32_t halvings_most = 31;  // smaller values are as good as none
  constexpr std::int32_t origin = 0x4B400000;  // 1.5 * 2^23
  constexpr float tiny = 1e-25F;  // below, 127 / largest would soon not be finite
  const auto as_float = [](std::int32_t bits) HWY_ATTR {
    return float_of(static_cast<std::uint32_t>(bits));
  };
  cpu::QuantizedBlock* blocks = view.row(r);
  // Pass by pass, so that no block waits for the one before.
  for (std::size_t k = first; k < last; k += 16) {
    blocks[k / 32].starts_8[k / 16 % 2] = largest_bits(load(x + k));  // for the time being
  }
  for (std::size_t k = first; k < last; k += 32) {
    cpu::QuantizedBlock& block = blocks[k / 32];
    const std::int32_t top = std::max(block.starts_8[0], block.starts_8[1]);
    const float largest = as_float(top);
    const bool some = top < infinity && largest > tiny;
    const float inverse = some ? 127.0F / largest : 0.0F;
    block.step = some ? largest / 127.0F : 0.0F;
    for (std::size_t half = 0; half < 2; ++half) {
      // Bits' difference is a power of two less where the smaller one's fraction is the larger.
      const std::int32_t difference = top - block.starts_8[half];
      const std::int32_t halved = std::min(difference, halvings_most * power) & -power;
      block.origins[half] = as_float(origin - halved);
      round_values(load(x + k + 16 * half), inverse * as_float(one + halved),
                   block.values + 16 * half);
    }
    if (top < infinity) continue;
    block = {};
    block.step = std::numeric_limits<float>::quiet_NaN();
  }
  for (std::size_t b = first / 32; b < last / 32; ++b) {
    cpu::QuantizedBlock& block = blocks[b];
    float units = 0.0F;
    for (std::size_t half = 0; half < 2; ++half) {
      const std::int32_t sum = sum_bytes(block.values + 16 * half);
      const auto begin = static_cast<std::int32_t>(bits_of(block.origins[half]));
      block.starts_8[half] = begin - 8 * sum;
      block.starts_128[half] = begin - 128 * sum;
      units += as_float(begin - origin + one) * static_cast<float>(sum);
    }
    block.sum = block.step * units;
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
