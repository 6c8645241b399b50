// Vectors with bfloat16 dot products are beyond the target of VNNI; see matmul_int8.cpp.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_bf16.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/cpu/attention-inl.hpp"
#include "kernels/cpu/denormals.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/cpu/narrow-inl.hpp"
#include "kernels/cpu/pairs-inl.hpp"
#include "kernels/cpu/weights-inl.hpp"

// Arithmetic intensity: a line of 64 bytes, two elements of sixteen keys or two values of sixteen
// elements, is one dot product of each query of the register tile: 24 for the 4 lines and 6 queries
// of a tile of many, 12 cycles where they load in 5. So these bound, at twice the speed of
// float32's multiply-adds, and nothing is widened; on Intel's cores, as without such dot products,
// two multiply-adds of the pair's parts do. A query that decodes has three or four heads for
// a line, and waits for memory.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// Stores sixteen weights rounded; returns what they are then.
HWY_INLINE Lanes round_weights(const Lanes& weights, std::uint16_t* to) {
  const hn::RebindToUnsigned<I> u32;
  const hn::Rebind<std::uint16_t, F> u16;
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    v.part[i] = round_weight(weights.part[i]);
    const auto halves = hn::BitCast(u32, upper_halves(v.part[i]));
    hn::StoreU(hn::TruncateTo(u16, halves), u16, to + i * part_lanes);
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
  static constexpr std::uint32_t chain_length = 16;
  static constexpr std::uint32_t unit = 2 * chain_length;
  static constexpr std::size_t tile_queries = By::twice ? (HWY_CAP_GE512 ? 5 : 4) : query_tile;
  static constexpr float unit_of_e = exponents_of_e;

  /// `scratch`: room for a register tile, and for a group's queries in bfloat16.
  HWY_INLINE InPairs(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch)
      : blocks_(work, pool, group),
        head_dim_(work.shape.head_dim),
        scale_(query_scale(work)),
        firsts_(scratch),
        queries_(reinterpret_cast<std::uint16_t*>(scratch + cpu::firsts_floats)) {}

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
    static_assert(N * T * 16 <= cpu::firsts_floats);
    for (std::size_t d = 0; d < head_dim_; d += chain_length) {
      Lanes chains[N * T];
      unroll<N * T>([&](auto i) SLUICE_INLINE { chains[i] = set(0.0F); });
      for (std::size_t k = d; k < d + chain_length; k += 2) {
        typename By::Weight key[T];
        unroll<T>([&](auto t) SLUICE_INLINE {
          key[t] = By::weight(load_pairs(keys[t] + k * 16));
          if (next != nullptr) __builtin_prefetch(next[t] + k * 16);
        });
        unroll<N>([&](auto n) SLUICE_INLINE {
          const auto pair = By::input(queries[n] + k);
          unroll<T>([&](auto t) SLUICE_INLINE { By::add(key[t], pair, chains[n * T + t]); });
        });
      }
      const bool first = d % (2 * chain_length) == 0, last = d + chain_length == head_dim_;
      unroll<N>([&](auto n) SLUICE_INLINE {
        unroll<T>([&](auto t) SLUICE_INLINE {
          Lanes& chain = chains[n * T + t];
          float* score = to + n * stride + t * tile_tokens;
          float* waiting = firsts_ + (n * T + t) * 16;
          if (first && !last) return store(chain, waiting);
          if (!first) chain = load(waiting) + chain;
          if (d >= 2 * chain_length) chain = load(score) + chain;
          store(chain, score);
        });
      });
    }
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
    static_assert(N * D * 16 <= cpu::firsts_floats);
    const Weight* weights[N];
    unroll<N>([&](auto n) SLUICE_INLINE {
      weights[n] = queries[n].weights;
      if (go_on) return;
      unroll<D>([&](auto i) SLUICE_INLINE { store(set(0.0F), queries[n].out + d + 16 * i); });
    });
    if (range.begin % unit >= chain_length) {
      unroll<N * D>([&](auto i) SLUICE_INLINE { store(set(0.0F), firsts_ + i * 16); });
    }
    const auto whole = [](const std::uint16_t* pairs) SLUICE_INLINE { return load_pairs(pairs); };
    const auto odd = [&](const std::uint16_t* pairs) SLUICE_INLINE {
      return masked(pairs, 0xFFFF0000U);
    };
    const auto even = [&](const std::uint16_t* pairs) SLUICE_INLINE {
      return masked(pairs, 0x0000FFFFU);
    };
    for (std::uint32_t p = range.begin; p < range.end;) {
      const std::uint32_t tile = p / chain_length * chain_length;
      const std::uint32_t run = std::min(range.end, tile + chain_length);
      Lanes chains[N * D];
      unroll<N * D>([&](auto i) SLUICE_INLINE { chains[i] = set(0.0F); });
      const auto add = [&](const std::uint16_t* from, std::uint32_t at, auto kept) SLUICE_INLINE {
        typename By::Weight value[D];
        unroll<D>([&](auto i) SLUICE_INLINE { value[i] = By::weight(kept(from + 32 * i)); });
        unroll<N>([&](auto n) SLUICE_INLINE {
          const auto weight = By::input(weights[n] + (at - base));
          unroll<D>([&](auto i) SLUICE_INLINE { By::add(value[i], weight, chains[n * D + i]); });
        });
      };
      if (p % 2 == 1) {
        add(values(p) + 2 * d, p - 1, odd);
        ++p;
      }
      if (p < run) {
        const std::uint16_t* from = values(p) + 2 * d;
        const std::uint32_t later = p + ahead_blocks * tile_tokens;
        const std::uint16_t* next = later < range.end ? values(later) + 2 * d : from;
        for (; p + 2 <= run; p += 2, from += 2 * head_dim_, next += 2 * head_dim_) {
          for (std::size_t i = 0; N <= few_queries && i < D; ++i) __builtin_prefetch(next + 32 * i);
          add(from, p, whole);
        }
        if (p < run) add(from, p++, even);
      }
      const bool first = tile % (2 * chain_length) == 0, last = run == range.end;
      unroll<N>([&](auto n) SLUICE_INLINE {
        unroll<D>([&](auto i) SLUICE_INLINE {
          Lanes& chain = chains[n * D + i];
          float* out = queries[n].out + d + 16 * i;
          float* waiting = firsts_ + (n * D + i) * 16;
          if (first && !last) return store(chain, waiting);
          store(load(out) + (first ? chain : load(waiting) + chain), out);
        });
      });
    }
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
  float* firsts_;  ///< a block's first chains while it has its second
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
