// What products of every format share: how sixteen results are stored. Included once per target.

#if defined(SLUICE_KERNELS_CPU_MATMUL_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_MATMUL_INL
#undef SLUICE_KERNELS_CPU_MATMUL_INL
#else
#define SLUICE_KERNELS_CPU_MATMUL_INL
#endif

#include <algorithm>

#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/matmul.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// Adds bias and residual, and stores what rows of the strip there are.
HWY_INLINE void finish(const cpu::Product& p, std::size_t r, std::size_t strip, Lanes value) {
  const std::size_t first = strip * cpu::strip_rows;
  float* out = p.out.row(r) + first;
  if (p.bias != nullptr) value = value + load(p.bias + first);
  const std::size_t count = std::min<std::size_t>(cpu::strip_rows, p.weight->rows - first);
  if (count == cpu::strip_rows) {
    store(p.accumulate ? load(out) + value : value, out);
    return;
  }
  float values[cpu::strip_rows];
  store(value, values);
  for (std::size_t i = 0; i < count; ++i) out[i] = p.accumulate ? out[i] + values[i] : values[i];
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_MATMUL_INL
