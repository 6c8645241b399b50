#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/narrow.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/cpu/narrow-inl.hpp"
#include "kernels/cpu/narrow.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

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
