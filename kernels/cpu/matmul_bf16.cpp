// Vectors with bfloat16 dot products are beyond the target of VNNI; see matmul_int8.cpp.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_bf16.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/cpu/denormals.hpp"
#include "kernels/cpu/matmul-inl.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/cpu/pairs-inl.hpp"
#include "kernels/cpu/trial_values.hpp"

// Arithmetic intensity: a pair of columns of a strip is a line of 64 bytes for one dot product of
// sixteen lanes a row, where a core gets some 12 bytes a cycle from memory and starts two dot
// products: up to ten rows run at the speed of memory. For many rows the dot products bound; a
// register tile of two strips and twelve rows has 24 of them, 12 cycles, for 14 loads, 7 cycles. A
// dot product takes 6 cycles, so twelve chains are needed: tiles of six rows and more have them.
// Intel's cores start a dot product every other cycle: there two multiply-adds take its place.
// Chains end after half a block; what they add up to waits in memory: a store, a load and a sum for
// eight dot products.
//
// Where the product has its activations unrounded, it adds in the same order by multiply-adds: half
// as fast, which a few rows at the speed of memory do not notice.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::Product;

// How pairs of columns are added (pairs-inl.hpp), and what activations are read as.

struct ByParts : PairsByParts {
  static HWY_INLINE const std::uint16_t* row(const Product& p, std::size_t r) {
    return p.rounded.bf16.row(r);
  }
};

/// Of activations as they are.
struct ByFloatParts : PairsByParts {
  static HWY_INLINE const float* row(const Product& p, std::size_t r) { return p.in.row(r); }
  static HWY_INLINE Input input(const float* pair) {
    return {hn::Set(F(), pair[1]), hn::Set(F(), pair[0])};
  }
};

#if HWY_TARGET == HWY_AVX3_DL
struct ByDots : PairsByDots {
  static HWY_INLINE const std::uint16_t* row(const Product& p, std::size_t r) {
    return p.rounded.bf16.row(r);
  }
};

/// Whether the instruction gives the bits that two multiply-adds give, of random pairs of which
/// every second or third sum is another in the other order, or when rounded once.
HWY_NOINLINE bool dots_agree() {
  cpu::TrialValues values;
  Lanes by_dots = set(1.0F), by_parts = by_dots;
  for (int step = 0; step < 64; ++step) {
    std::uint16_t pairs[34];
    for (std::uint16_t& one : pairs) one = values.next();
    const Pairs w = load_pairs(pairs);
    ByDots::add(w, ByDots::input(pairs + 32), by_dots);
    ByParts::add(ByParts::weight(w), ByParts::input(pairs + 32), by_parts);
  }
  float one[16], other[16];
  store(by_dots, one);
  store(by_parts, other);
  return std::memcmp(one, other, sizeof one) == 0;
}

/// Intel's cores start one of these in two cycles (Sapphire Rapids, `sluice-bench --peak`), where
/// they start four multiply-adds.
bool bf16_by_dots() {
  static const bool faster = __builtin_cpu_supports("avx512bf16") &&
                             !__builtin_cpu_is("intel") && dots_agree();
  return faster;
}
#else
bool bf16_by_dots() { return false; }
#endif

// Register tile: strips x activation rows, as many chains as leave room for the operands.
#if HWY_CAP_GE512
constexpr std::size_t tile_strips = 2, tile_rows = 12;  // 24 of 32 registers
#elif SLUICE_PORTABLE
constexpr std::size_t tile_strips = 1, tile_rows = 1;
#else
constexpr std::size_t tile_strips = 1, tile_rows = 4;  // 8 of 16 (AVX2), 16 of 32 (NEON)
#endif

// For one or two rows: a chain waits 6 or 8 cycles for itself, in which memory gives a line and a
// half.
constexpr std::size_t few_strips = SLUICE_PORTABLE ? 1 : 2;

// Strips that all rows go over together: they come from the second-level cache, often enough for
// the dot products.
constexpr std::uint32_t cached_strips = 4;

// What a chain adds: half a block.
constexpr std::size_t half_pairs = cpu::block_cols / 4;

// How far ahead of its use a weight is asked for.
constexpr std::size_t prefetch_bytes = 8192;

template <class How, std::size_t S, std::size_t N>
HWY_NOINLINE void multiply_tile(const Product& p, std::size_t r, std::size_t strip) {
  const std::uint8_t* weights[S];
  decltype(How::row(p, r)) x[N];
  // In memory, as are the first chains of a block while it has its second.
  alignas(64) float sums[S * N][cpu::strip_rows] = {};
  alignas(64) float firsts[S * N][cpu::strip_rows] = {};
  for (std::size_t s = 0; s < S; ++s) {
    weights[s] = p.weight->strip(static_cast<std::uint32_t>(strip + s));
  }
  for (std::size_t n = 0; n < N; ++n) x[n] = How::row(p, r + n);
  const std::size_t halves = 2 * std::size_t{p.weight->blocks()};
  for (std::size_t half = 0; half < halves; ++half) {
    Lanes chains[S * N];
    unroll<S * N>([&](auto i) SLUICE_INLINE { chains[i] = set(0.0F); });
    for (std::size_t k = half * half_pairs; k < (half + 1) * half_pairs; ++k) {
      typename How::Weight w[S];
      unroll<S>([&](auto s) SLUICE_INLINE {
        const std::uint8_t* at = weights[s] + k * cpu::pair_bytes;
        __builtin_prefetch(at + prefetch_bytes);
        w[s] = How::weight(load_pairs(at));
      });
      unroll<N>([&](auto n) SLUICE_INLINE {
        const auto input = How::input(x[n] + 2 * k);
        unroll<S>([&](auto s) SLUICE_INLINE { How::add(w[s], input, chains[s * N + n]); });
      });
    }
    if (half % 2 == 0) {
      unroll<S * N>([&](auto i) SLUICE_INLINE { store(chains[i], firsts[i]); });
    } else {
      unroll<S * N>([&](auto i) SLUICE_INLINE {
        store(load(sums[i]) + (load(firsts[i]) + chains[i]), sums[i]);
      });
    }
  }
  unroll<S * N>([&](auto i) SLUICE_INLINE { finish(p, r + i % N, strip + i / N, load(sums[i])); });
}

/// Strips [first, last) for N rows from r on, S strips at once, then fewer.
template <class How, std::size_t S, std::size_t N>
HWY_INLINE void multiply_strips(const Product& p, std::size_t r, std::size_t first,
                                std::size_t last) {
  for (; first + S <= last; first += S) multiply_tile<How, S, N>(p, r, first);
  if constexpr (S > 1) multiply_strips<How, S / 2, N>(p, r, first, last);
}

/// Rows [r, rows), N at once, then fewer.
template <class How, std::size_t N>
HWY_INLINE void multiply_rows(const Product& p, std::size_t r, std::size_t rows, std::size_t first,
                              std::size_t last) {
  constexpr std::size_t strips = N <= 2 ? few_strips : tile_strips;
  for (; r + N <= rows; r += N) multiply_strips<How, strips, N>(p, r, first, last);
  if constexpr (N > 1) {
    multiply_rows<How, (N > 8 ? 8 : N / 2)>(p, r, rows, first, last);
  }
}

template <class How>
HWY_INLINE void multiply_by(const Product& p, std::uint32_t rows, std::uint32_t first,
                            std::uint32_t last) {
  for (std::uint32_t s = first; s < last; s += cached_strips) {
    multiply_rows<How, tile_rows>(p, 0, rows, s, std::min(last, s + cached_strips));
  }
}

void multiply_bf16(const Product& p, std::uint32_t rows, std::uint32_t first,
                   std::uint32_t last) {
  const cpu::NoDenormals flushed;
  if (p.rounded.bf16.data == nullptr) return multiply_by<ByFloatParts>(p, rows, first, last);
#if HWY_TARGET == HWY_AVX3_DL
  if (bf16_by_dots()) return multiply_by<ByDots>(p, rows, first, last);
#endif
  multiply_by<ByParts>(p, rows, first, last);
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(multiply_bf16);
HWY_EXPORT(bf16_by_dots);

namespace cpu {

bool bf16_by_dots() { return HWY_DYNAMIC_DISPATCH(bf16_by_dots)(); }

void multiply_bf16(const Product& product, std::uint32_t rows, std::uint32_t first,
                   std::uint32_t last) {
  HWY_DYNAMIC_DISPATCH(multiply_bf16)(product, rows, first, last);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
