// Of the processor's tiles, those of the target that has byte dot products; see matmul_int8.cpp.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tiles.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/cpu/denormals.hpp"
#include "kernels/cpu/tiles-inl.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/trial_values.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

#if SLUICE_TILES
/// Whether the processor adds up as the loop does, of random values: in the other orders that were
/// tried an eighth of such sums or more are others.
HWY_NOINLINE bool tiles_agree() {
  const cpu::NoDenormals flushed;
  cpu::TrialValues values;
  alignas(64) std::uint16_t tiles[2][16][32];
  alignas(64) float by_processor[16][16], by_loop[16][16];
  for (auto& tile : tiles) {
    for (auto& line : tile) {
      for (std::uint16_t& one : line) one = values.next();
    }
  }
  const auto multiply = [&](auto& by, float* to) {
    by.template zero<0>();
    by.template load_a<2>(tiles[0]);
    by.template load_b<4>(tiles[1]);
    by.template dot<0, 2, 4>();
    by.template dot<0, 2, 4>();
    by.template store<0>(to);
  };
  ProcessorTiles<16> processor;
  LoopTiles<16> loop;
  multiply(processor, by_processor[0]);
  multiply(loop, by_loop[0]);
  return std::memcmp(by_processor, by_loop, sizeof by_loop) == 0;
}

/// The processor has them (leaf 7: AMX-BF16, AMX-TILE), and Linux lets the process use them: but
/// not where an alternative signal stack is too small for frames that are 8 KiB larger, nor are
/// such stacks to be had from then on.
bool has_tiles() {
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    if ((d & (1U << 22)) == 0 || (d & (1U << 24)) == 0) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // asm/prctl.h, of Linux 5.16
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 && tiles_agree();
  }();
  return has;
}
#else
bool has_tiles() { return false; }
#endif

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(has_tiles);

bool cpu::has_tiles() { return HWY_DYNAMIC_DISPATCH(has_tiles)(); }

}  // namespace sluice::kernels
#endif
