// Vectors with bfloat16 dot products are beyond the target of VNNI; see matmul_int8.cpp.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_bf16.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <numbers>

#include "kernels/cpu/attention-inl.hpp"
#include "kernels/cpu/denormals.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/cpu/narrow-inl.hpp"
#include "kernels/cpu/pairs-inl.hpp"

// Arithmetic intensity: a line of 64 bytes, two elements of sixteen keys or two values of sixteen
// elements, is one dot product of each query of the register tile: 24 for the 4 lines and 6 queries
// of a tile of many, 12 cycles where they load in 5. So these bound, at twice the speed of
// float32's multiply-adds, and nothing is widened; on Intel's cores, as without such dot products,
// two multiply-adds of the pair's parts do. A query that decodes has three or four heads for
// a line, and waits for memory.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

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

/// Stores sixteen weights rounded to bfloat16, nearest even; returns what they are then. NaN stays
/// NaN, as above.
HWY_INLINE Lanes round_weights(const Lanes& weights, std::uint16_t* to) {
  const hn::RebindToUnsigned<I> u32;
  const hn::Rebind<std::uint16_t, F> u16;
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    const auto bits = hn::BitCast(u32, weights.part[i]);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u32, 1));
    const auto sum = hn::Add(bits, hn::Add(odd, hn::Set(u32, 0x7FFF)));
    hn::StoreU(hn::TruncateTo(u16, hn::ShiftRight<16>(sum)), u16, to + i * part_lanes);
    v.part[i] = hn::BitCast(F(), hn::And(sum, hn::Set(u32, 0xFFFF0000U)));
  });
  return v;
}

/// In bfloat16, of keys and values that lie in pairs; `By` adds them.
template <class By>
class InPairs {
 public:
  using Query = const std::uint16_t*;
  using Weight = std::uint16_t;
  using KeyTile = const std::uint16_t*;  ///< [head_dim / 2][16 positions][2]
  static constexpr std::uint32_t unit = 2;
  static constexpr std::size_t tile_queries = By::twice ? (HWY_CAP_GE512 ? 5 : 4) : query_tile;
  static constexpr float unit_of_e = std::numbers::log2e_v<float>;  ///< exponents of 2

  /// `queries`: room for a group's, in bfloat16.
  HWY_INLINE InPairs(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* queries)
      : blocks_(work, pool, group),
        head_dim_(work.shape.head_dim),
        scale_(work.soft_cap > 0 ? work.scale : work.scale * unit_of_e),
        queries_(reinterpret_cast<std::uint16_t*>(queries)) {}

  /// Scaled, then rounded.
  HWY_INLINE Query query(const float* head, std::size_t index) const {
    std::uint16_t* to = queries_ + index * head_dim_;
    for (std::size_t d = 0; d < head_dim_; d += 16) {
      narrow_lanes(load(head + d) * set(scale_), to + d);
    }
    return to;
  }
  /// Weights take the place of scores.
  HWY_INLINE const Weight* weights(const float* scores) const {
    return reinterpret_cast<const Weight*>(scores);
  }
  HWY_INLINE bool in_place() const { return true; }

  HWY_INLINE KeyTile keys(std::uint32_t tile, std::size_t) const {
    return blocks_.keys(tile) + tile % blocks_.tokens() * head_dim_;
  }

  /// Scores of N queries against T tiles of keys at once; asks for the `next` ones meanwhile, if
  /// any.
  template <std::size_t N, std::size_t T>
  HWY_INLINE void score(const Query* queries, const KeyTile* keys, const KeyTile* next, float* to,
                        std::size_t stride) const {
    Lanes acc[N * T];
    unroll<N * T>([&](auto i) SLUICE_INLINE { acc[i] = set(0.0F); });
    for (std::size_t d = 0; d < head_dim_; d += 2) {
      typename By::Weight key[T];
      unroll<T>([&](auto t) SLUICE_INLINE {
        key[t] = By::weight(load_pairs(keys[t] + d * 16));
        if (next != nullptr) __builtin_prefetch(next[t] + d * 16);
      });
      unroll<N>([&](auto n) SLUICE_INLINE {
        const auto pair = By::input(queries[n] + d);
        unroll<T>([&](auto t) SLUICE_INLINE { By::add(key[t], pair, acc[n * T + t]); });
      });
    }
    unroll<N>([&](auto n) SLUICE_INLINE {
      unroll<T>([&](auto t) SLUICE_INLINE {
        store(acc[n * T + t], to + n * stride + t * tile_tokens);
      });
    });
  }

  /// Rounded weights of one query from its scores, in place, 0 outside the range. Returns 1 / sum.
  HWY_INLINE float softmax(float* scores, std::uint32_t base, Range range) const {
    const Lanes peak = mask_scores(scores, base, range);
    auto* weights = reinterpret_cast<std::uint16_t*>(scores);
    Lanes total = set(0.0F);
    for (std::uint32_t p = range.begin / 16 * 16; p < range.end; p += 16) {
      const Lanes weight = power_of_two(load(scores + (p - base)) - peak);
      total = total + round_weights(weight, weights + (p - base));
    }
    return 1.0F / sum(total);
  }

  /// out = 0, or as it is to `go_on`, + sum of weights . values over a range of positions, for N
  /// queries and D sixteens of their heads from element d on. Of a pair that is not whole in the
  /// range, the other value is not looked at: it may be anything.
  template <std::size_t N, std::size_t D>
  HWY_INLINE void add_values(Range range, std::uint32_t base, std::size_t d, bool go_on,
                             const Weighted<Weight>* queries) const {
    const Weight* weights[N];
    Lanes acc[N * D];
    unroll<N>([&](auto n) SLUICE_INLINE {
      weights[n] = queries[n].weights;
      unroll<D>([&](auto i) SLUICE_INLINE {
        acc[n * D + i] = go_on ? load(queries[n].out + d + 16 * i) : set(0.0F);
      });
    });
    const auto add = [&](const std::uint16_t* from, std::uint32_t p, auto kept) SLUICE_INLINE {
      typename By::Weight value[D];
      unroll<D>([&](auto i) SLUICE_INLINE { value[i] = By::weight(kept(from + 32 * i)); });
      unroll<N>([&](auto n) SLUICE_INLINE {
        const auto weight = By::input(weights[n] + (p - base));
        unroll<D>([&](auto i) SLUICE_INLINE { By::add(value[i], weight, acc[n * D + i]); });
      });
    };
    const auto whole = [](const std::uint16_t* pairs) SLUICE_INLINE { return load_pairs(pairs); };
    const auto odd = [&](const std::uint16_t* pairs) SLUICE_INLINE {
      return masked(pairs, 0xFFFF0000U);
    };
    const auto even = [&](const std::uint16_t* pairs) SLUICE_INLINE {
      return masked(pairs, 0x0000FFFFU);
    };
    std::uint32_t p = range.begin;
    if (p % 2 == 1) {
      add(values(p) + 2 * d, p - 1, odd);
      ++p;
    }
    const std::uint32_t pairs_end = range.end / 2 * 2;
    while (p < pairs_end) {
      const std::uint32_t run = std::min(pairs_end, (p / tile_tokens + 1) * tile_tokens);
      const std::uint16_t* from = values(p) + 2 * d;
      const std::uint32_t later = p + ahead_blocks * tile_tokens;
      const std::uint16_t* next = later < range.end ? values(later) + 2 * d : from;
      for (; p < run; p += 2, from += 2 * head_dim_, next += 2 * head_dim_) {
        for (std::size_t i = 0; N <= few_queries && i < D; ++i) __builtin_prefetch(next + 32 * i);
        add(from, p, whole);
      }
    }
    if (p < range.end) add(values(p) + 2 * d, p, even);
    unroll<N>([&](auto n) SLUICE_INLINE {
      unroll<D>([&](auto i) SLUICE_INLINE {
        store(acc[n * D + i], queries[n].out + d + 16 * i);
      });
    });
  }

 private:
  /// Where the pair of a position is: [block_tokens / 2][head_dim][2]
  HWY_INLINE const std::uint16_t* values(std::uint32_t position) const {
    return blocks_.values(position) + position % blocks_.tokens() / 2 * 2 * head_dim_;
  }

  static HWY_INLINE Pairs masked(const std::uint16_t* pairs, std::uint32_t mask) {
    Pairs v = load_pairs(pairs);
    unroll<parts>([&](auto i) SLUICE_INLINE {
      v.part[i] = hn::And(v.part[i], hn::Set(I(), static_cast<std::int32_t>(mask)));
    });
    return v;
  }

  SeenBlocks blocks_;
  std::size_t head_dim_;
  float scale_;
  std::uint16_t* queries_;
};

template <class By>
HWY_NOINLINE void attend_pairs(const AttentionWork& work, const KvPool& pool,
                               const QueryGroup& group, float* scratch) {
  const InPairs<By> how(work, pool, group, scratch);
  attend_by(how, work, group, scratch + cpu::scores_at(work.shape.head_dim));
}

void attend_in_pairs(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch) {
  const cpu::NoDenormals flushed;
#if HWY_TARGET == HWY_AVX3_DL
  if (cpu::bf16_by_dots()) return attend_pairs<PairsByDots>(work, pool, group, scratch);
#endif
  attend_pairs<PairsByParts>(work, pool, group, scratch);
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(attend_in_pairs);

namespace cpu {

void attend_in_pairs(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch) {
  HWY_DYNAMIC_DISPATCH(attend_in_pairs)(work, pool, group, scratch);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
