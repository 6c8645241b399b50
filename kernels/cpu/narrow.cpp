#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/narrow.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <cstring>

#include "kernels/cpu/narrow-inl.hpp"
#include "kernels/cpu/narrow.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

void narrow_row(const float* x, std::uint32_t first, std::uint32_t last, std::uint16_t* to) {
  for (std::size_t k = first; k < last; k += part_lanes) {
    narrow_part(hn::LoadU(F(), x + k), to + k);
  }
}

/// The same into blocks of which the row is number `row`.
void narrow_tiled(const float* x, std::uint32_t first, std::uint32_t last, std::size_t row,
                  cpu::NarrowBlock* to) {
  for (std::uint32_t k = first; k < last; k += 32) {
    alignas(64) std::int32_t words[16];
    for (std::size_t i = 0; i < 16; i += part_lanes) {
      const auto low = narrow_words(hn::LoadU(F(), x + k + i));
      const auto high = narrow_words(hn::LoadU(F(), x + k + 16 + i));
      hn::Store(hn::Or(low, hn::ShiftLeft<16>(high)), I(), words + i);
    }
    std::int32_t swapped[16];
    for (std::size_t i = 0; i < 16; ++i) swapped[i] = words[i ^ 1];
    std::memcpy(to[k / 32].values[row], swapped, sizeof swapped);
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(narrow_row);
HWY_EXPORT(narrow_tiled);

namespace cpu {

void narrow(const float* x, std::uint32_t first, std::uint32_t last, const NarrowView& to,
            std::size_t r, std::size_t rows) {
  if (!to.tiled(rows)) return HWY_DYNAMIC_DISPATCH(narrow_row)(x, first, last, to.row(r));
  HWY_DYNAMIC_DISPATCH(narrow_tiled)(x, first, last, r % NarrowBlock::rows,
                                     to.tile(r / NarrowBlock::rows));
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
