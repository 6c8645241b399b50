// Rounding to bfloat16. Included once per target.

#if defined(SLUICE_KERNELS_CPU_NARROW_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_NARROW_INL
#undef SLUICE_KERNELS_CPU_NARROW_INL
#else
#define SLUICE_KERNELS_CPU_NARROW_INL
#endif

#include "kernels/cpu/lanes-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// f32_to_bf16 in each lane, to the bit, in the lower half of each word
HWY_INLINE hn::Vec<I> narrow_words(Part x) {
  const auto bits = hn::BitCast(I(), x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(I(), 1));
  // Of a number that is not finite the sum may pass into the sign, which the shift gives back.
  const auto sum = hn::Add(bits, hn::Add(odd, hn::Set(I(), 0x7FFF)));
  const hn::RebindToUnsigned<I> u32;
  const auto upper = hn::BitCast(I(), hn::ShiftRight<16>(hn::BitCast(u32, sum)));
  const auto is_nan = hn::Gt(hn::And(bits, hn::Set(I(), 0x7FFFFFFF)), hn::Set(I(), 0x7F800000));
  return hn::IfThenElse(is_nan, hn::Set(I(), 0x7FFF), upper);
}

/// The same, stored.
HWY_INLINE void narrow_part(Part x, std::uint16_t* to) {
  const hn::Rebind<std::uint16_t, F> u16;
  hn::StoreU(hn::DemoteTo(u16, narrow_words(x)), u16, to);
}

/// The same of sixteen.
HWY_INLINE void narrow_lanes(const Lanes& x, std::uint16_t* to) {
  unroll<parts>([&](auto i) SLUICE_INLINE { narrow_part(x.part[i], to + i * part_lanes); });
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_NARROW_INL
