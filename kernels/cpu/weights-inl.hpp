// Weights of attention in bfloat16, of scores that are exponents of 2, and what makes scores so.
// Included once per target.

#if defined(SLUICE_KERNELS_CPU_WEIGHTS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_WEIGHTS_INL
#undef SLUICE_KERNELS_CPU_WEIGHTS_INL
#else
#define SLUICE_KERNELS_CPU_WEIGHTS_INL
#endif

#include <numbers>

#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/lanes-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

constexpr float exponents_of_e = std::numbers::log2e_v<float>;

/// A cap, which comes before the exponent, brings that factor itself.
HWY_INLINE float query_scale(const cpu::AttentionWork& work) {
  return work.soft_cap > 0 ? work.scale : work.scale * exponents_of_e;
}

/// 2^x for x <= 0, within 2^-18 of it; 0 below 2^-126. NaN, which here has no low bits, stays NaN.
HWY_INLINE Lanes power_of_two(const Lanes& x) {
  // 2^r for |r| <= 1/2, 1 where r is 0
  constexpr float factors[] = {0x1.3a02cap-7F, 0x1.c9fc46p-5F, 0x1.ec0378p-3F, 0x1.62e12cp-1F, 1};
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    const Part round = hn::Set(F(), 12582912.0F);  // 1.5 * 2^23
    const Part shifted = hn::Add(x.part[i], round);
    const Part r = hn::Sub(x.part[i], hn::Sub(shifted, round));
    Part p = hn::Set(F(), factors[0]);
    for (int f = 1; f < 5; ++f) p = fma_part(p, r, hn::Set(F(), factors[f]));
    const auto exponent = hn::ShiftLeft<23>(hn::BitCast(I(), shifted));
    const Part scaled = hn::BitCast(F(), hn::Add(hn::BitCast(I(), p), exponent));
    v.part[i] = hn::IfThenZeroElse(hn::Lt(x.part[i], hn::Set(F(), -126.0F)), scaled);
  });
  return v;
}

/// Rounded to bfloat16, nearest even, as float32. NaN stays NaN, as above.
HWY_INLINE Part round_weight(Part weight) {
  const hn::RebindToUnsigned<I> u32;
  const auto bits = hn::BitCast(u32, weight);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u32, 1));
  const auto sum = hn::Add(bits, hn::Add(odd, hn::Set(u32, 0x7FFF)));
  return hn::BitCast(F(), hn::And(sum, hn::Set(u32, 0xFFFF0000U)));
}

/// The upper halves of each word.
HWY_INLINE hn::Vec<I> upper_halves(Part rounded) {
  const hn::RebindToUnsigned<I> u32;
  return hn::BitCast(I(), hn::ShiftRight<16>(hn::BitCast(u32, rounded)));
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_WEIGHTS_INL
