// Eight tiles of sixteen rows of 64 bytes, and sums of bfloat16 products in them: as the processor
// has them (AMX), or by a loop, which tests compare with where it has none. Included once per
// target, of which only the one with byte dot products of 512 bits has any.

#if defined(SLUICE_KERNELS_CPU_TILES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_TILES_INL
#undef SLUICE_KERNELS_CPU_TILES_INL
#else
#define SLUICE_KERNELS_CPU_TILES_INL
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/core.hpp"
#include "kernels/cpu/lanes-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

inline constexpr std::size_t tile_line = 64;  ///< bytes

// Both kinds of tiles: tile `c` += `a` times `b`, where a has, in each line, pairs of one row, and
// b, in line k, the k-th pair of each column. Both have `pairs` of them, 8 or 16. A pair's first
// elements are a chain of fused multiply-adds that begins at zero, its second ones another, and
// what is added is the sum of both; denormals are zeros (the loop's only under denormals.hpp).

/// By a loop.
template <std::size_t pairs>
class LoopTiles {
 public:
  template <int t>
  void zero() {
    std::memset(&tiles_[t], 0, sizeof tiles_[t]);
  }
  /// Lines of a tile `a`, or all of a tile `b`, 64 bytes apart.
  template <int t>
  void load_a(const void* from) {
    std::memcpy(&tiles_[t], from, 15 * tile_line + 4 * pairs);  // behind them others' may end
  }
  template <int t>
  void load_b(const void* from) {
    std::memcpy(&tiles_[t], from, pairs * tile_line);
  }
  /// What store() gave.
  template <int t>
  void load_sums(const float* from) {
    std::memcpy(&tiles_[t], from, sizeof tiles_[t]);
  }
  template <int c, int a, int b>
  void dot() {
    for (std::size_t m = 0; m < 16; ++m) {
      for (std::size_t n = 0; n < 16; ++n) {
        float chains[2] = {};
        for (std::size_t k = 0; k < 2 * pairs; ++k) {
          chains[k % 2] = std::fma(bf16_to_f32(tiles_[a].halves[m][k]),
                                   bf16_to_f32(tiles_[b].halves[k / 2][2 * n + k % 2]),
                                   chains[k % 2]);
        }
        tiles_[c].sums[m][n] += chains[0] + chains[1];
      }
    }
  }
  template <int t>
  void store(float* to) const {
    std::memcpy(to, &tiles_[t], sizeof tiles_[t]);
  }

 private:
  union Tile {
    float sums[16][16];
    std::uint16_t halves[16][32];
  };
  Tile tiles_[8];
};

#if HWY_TARGET == HWY_AVX3_DL
/// Two lines of a tile `b` out of a line of pairs of each chain: each word has one of both chains,
/// of each pair the odd one first.
HWY_INLINE void store_chains(__m512i first, __m512i second, std::uint16_t (*to)[32]) {
  constexpr __mmask32 upper = 0xAAAAAAAA;
  const __m512i odd = _mm512_mask_blend_epi16(upper, _mm512_srli_epi32(first, 16), second);
  const __m512i even = _mm512_mask_blend_epi16(upper, first, _mm512_slli_epi32(second, 16));
  _mm512_store_si512(to[0], odd);
  _mm512_store_si512(to[1], even);
}
#endif

#undef SLUICE_TILES
// As assembly, which Clang refuses in functions of a target without them.
#if HWY_TARGET == HWY_AVX3_DL && defined(__GNUC__) && !defined(__clang__)
#define SLUICE_TILES 1

/// By the processor. While it lives the thread has its tiles configured: 0 and 1 for sums, 2 and 3
/// for a, 4 to 7 for b, or with 16 pairs, where all are alike, each for any.
template <std::size_t pairs>
class ProcessorTiles {
 public:
  ProcessorTiles() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t line_bytes[16] = {64, 64, 4 * pairs, 4 * pairs, 64, 64, 64, 64};
      std::uint8_t lines[16] = {16, 16, 16, 16, pairs, pairs, pairs, pairs};
    } const shape;
    static_assert(sizeof shape == 64);
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~ProcessorTiles() { asm volatile("tilerelease"); }
  ProcessorTiles(const ProcessorTiles&) = delete;
  ProcessorTiles& operator=(const ProcessorTiles&) = delete;

  template <int t>
  HWY_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(t));
  }
  template <int t>
  HWY_INLINE void load_a(const void* from) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(tile_line), "i"(t) : "memory");
  }
  template <int t>
  HWY_INLINE void load_b(const void* from) {
    load_a<t>(from);
  }
  template <int t>
  HWY_INLINE void load_sums(const float* from) {
    load_a<t>(from);
  }
  template <int c, int a, int b>
  HWY_INLINE void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
  template <int t>
  HWY_INLINE void store(float* to) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(tile_line), "i"(t) : "memory");
  }
};
#endif

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_TILES_INL
