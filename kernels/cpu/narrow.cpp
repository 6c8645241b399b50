#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/narrow.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/narrow.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// f32_to_bf16 in each lane, to the bit
HWY_INLINE void narrow_part(Part x, std::uint16_t* to) {
  const hn::Rebind<std::uint16_t, F> u16;
  const auto bits = hn::BitCast(I(), x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(I(), 1));
  // Of a number that is not finite the sum may pass into the sign, which the shift gives back.
  const auto sum = hn::Add(bits, hn::Add(odd, hn::Set(I(), 0x7FFF)));
  const hn::RebindToUnsigned<I> u32;
  const auto upper = hn::BitCast(I(), hn::ShiftRight<16>(hn::BitCast(u32, sum)));
  const auto is_nan = hn::Gt(hn::And(bits, hn::Set(I(), 0x7FFFFFFF)), hn::Set(I(), 0x7F800000));
  const auto narrowed = hn::IfThenElse(is_nan, hn::Set(I(), 0x7FFF), upper);
  hn::StoreU(hn::DemoteTo(u16, narrowed), u16, to);
}

void narrow(const float* x, std::uint32_t first, std::uint32_t last, const cpu::NarrowView& view,
            std::size_t r) {
  std::uint16_t* to = view.row(r);
  for (std::size_t k = first; k < last; k += part_lanes) {
    narrow_part(hn::LoadU(F(), x + k), to + k);
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(narrow);

namespace cpu {

void narrow(const float* x, std::uint32_t first, std::uint32_t last, const NarrowView& to,
            std::size_t r) {
  HWY_DYNAMIC_DISPATCH(narrow)(x, first, last, to, r);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
