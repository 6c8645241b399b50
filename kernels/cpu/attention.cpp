#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "kernels/cpu/attention-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

/// The first `count` of sixteen, zeros behind them.
HWY_INLINE Lanes load_some(const float* from, std::size_t count) {
  float copy[16] = {};
  std::copy(from, from + count, copy);
  return load(copy);
}

/// The same of halves.
HWY_INLINE Lanes load_some_halves(const std::uint16_t* from, std::size_t count) {
  std::uint16_t copy[16] = {};
  std::copy(from, from + count, copy);
  return load_half(copy);
}

/// In float32, of keys and values in float16, any head and block.
class InFloat {
 public:
  using Query = const float*;
  using Weight = float;
  static constexpr std::uint32_t unit = 1;
  static constexpr std::size_t tile_queries = query_tile;
  static constexpr float unit_of_e = 1.0F;  ///< scores are exponents of e

  /// Halves of a tile of keys: element d of its sixteen positions at data[d * stride].
  struct KeyTile {
    const std::uint16_t* data;
    std::size_t stride;
  };

  /// `copies`: room for key_copies tiles.
  HWY_INLINE InFloat(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* copies)
      : blocks_(work, pool, group),
        end_(group.position + group.rows),
        head_dim_(work.shape.head_dim),
        scale_(work.scale),
        copies_(reinterpret_cast<std::uint16_t*>(copies)) {}

  HWY_INLINE Query query(const float* head, std::size_t) const { return head; }
  HWY_INLINE const Weight* weights(const float* scores) const { return scores; }
  HWY_INLINE bool in_place() const { return blocks_.tokens() >= tile_tokens; }

  /// The keys of positions tile .. tile + 15, in place where a block holds them all, else copied
  /// from the blocks that the group sees.
  HWY_INLINE KeyTile keys(std::uint32_t tile, std::size_t copy) const {
    const std::uint32_t block_tokens = blocks_.tokens();
    if (in_place()) return {blocks_.keys(tile) + tile % block_tokens, block_tokens};
    std::uint16_t* to = copies_ + copy * 16 * head_dim_;
    for (std::uint32_t p = tile; p < std::min(end_, tile + tile_tokens); ++p) {
      const std::uint16_t* from = blocks_.keys(p) + p % block_tokens;
      for (std::size_t d = 0; d < head_dim_; ++d) to[d * 16 + (p - tile)] = from[d * block_tokens];
    }
    return {to, 16};
  }

  /// Scores of N queries against T tiles of keys at once; asks for the `next` ones meanwhile, if
  /// any.
  template <std::size_t N, std::size_t T>
  HWY_INLINE void score(const Query* queries, const KeyTile* keys, const KeyTile* next, float* to,
                        std::size_t stride) const {
    Lanes acc[N * T];
    unroll<N * T>([&](auto i) SLUICE_INLINE { acc[i] = set(0.0F); });
    for (std::size_t d = 0; d < head_dim_; ++d) {
      Lanes key[T];
      unroll<T>([&](auto t) SLUICE_INLINE {
        key[t] = load_half(keys[t].data + d * keys[t].stride);
        if (next != nullptr) __builtin_prefetch(next[t].data + d * keys[t].stride);
      });
      unroll<N>([&](auto n) SLUICE_INLINE {
        const Lanes element = set(queries[n][d]);
        unroll<T>([&](auto t) SLUICE_INLINE {
          acc[n * T + t] = fma(element, key[t], acc[n * T + t]);
        });
      });
    }
    unroll<N>([&](auto n) SLUICE_INLINE {
      unroll<T>([&](auto t) SLUICE_INLINE {
        store(acc[n * T + t] * set(scale_), to + n * stride + t * tile_tokens);
      });
    });
  }

  /// Weights of one query from its scores, in place, 0 outside the range. Returns 1 / sum.
  HWY_INLINE float softmax(float* scores, std::uint32_t base, Range range) const {
    const Lanes peak = mask_scores(scores, base, range);
    Lanes total = set(0.0F);
    for (std::uint32_t p = range.begin / 16 * 16; p < range.end; p += 16) {
      const Lanes weight = exp(load(scores + (p - base)) - peak);
      store(weight, scores + (p - base));
      total = total + weight;
    }
    return 1.0F / sum(total);
  }

  /// out = 0, or as it is to `go_on`, + sum of weights . values over a range of positions, for N
  /// queries and D sixteens of their heads from element d on.
  template <std::size_t N, std::size_t D>
  HWY_INLINE void add_values(Range range, std::uint32_t base, std::size_t d, bool go_on,
                             const Weighted<Weight>* queries) const {
    const std::uint32_t block_tokens = blocks_.tokens();
    const std::size_t last = std::min<std::size_t>(16, head_dim_ - d - 16 * (D - 1));
    const auto whole = [&](std::size_t i) SLUICE_INLINE { return i + 1 < D || last == 16; };
    const float* weights[N];
    Lanes acc[N * D];
    unroll<N>([&](auto n) SLUICE_INLINE {
      weights[n] = queries[n].weights;
      unroll<D>([&](auto i) SLUICE_INLINE {
        acc[n * D + i] = set(0.0F);
        if (!go_on) return;
        const float* from = queries[n].out + d + 16 * i;
        acc[n * D + i] = whole(i) ? load(from) : load_some(from, last);
      });
    });
    for (std::uint32_t p = range.begin; p < range.end;) {
      const std::uint32_t at = p % block_tokens;
      const std::uint32_t run = std::min(block_tokens - at, range.end - p);
      const std::uint16_t* from = blocks_.values(p) + at * head_dim_ + d;
      const std::uint32_t later = p + run + (ahead_blocks - 1) * block_tokens;
      const std::uint16_t* next = later < range.end ? blocks_.values(later) + d : from;
      for (std::uint32_t t = 0; t < run; ++t, from += head_dim_, next += head_dim_) {
        for (std::size_t i = 0; N <= few_queries && i < D; i += 2) {
          __builtin_prefetch(next + 16 * i);  // 64 bytes
        }
        Lanes value[D];
        unroll<D>([&](auto i) SLUICE_INLINE {
          value[i] = whole(i) ? load_half(from + 16 * i) : load_some_halves(from + 16 * i, last);
        });
        unroll<N>([&](auto n) SLUICE_INLINE {
          const Lanes weight = set(weights[n][p - base + t]);
          unroll<D>([&](auto i) SLUICE_INLINE {
            acc[n * D + i] = fma(weight, value[i], acc[n * D + i]);
          });
        });
      }
      p += run;
    }
    unroll<N>([&](auto n) SLUICE_INLINE {
      unroll<D>([&](auto i) SLUICE_INLINE {
        float* to = queries[n].out + d + 16 * i;
        if (whole(i)) return store(acc[n * D + i], to);
        float some[16];
        store(acc[n * D + i], some);
        std::copy(some, some + last, to);
      });
    });
  }

 private:
  SeenBlocks blocks_;
  std::uint32_t end_;
  std::size_t head_dim_;
  float scale_;
  std::uint16_t* copies_;
};

void attend_in_float(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch) {
  const InFloat how(work, pool, group, scratch);
  attend_by(how, work, group, scratch + cpu::scores_at(work.shape.head_dim));
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(attend_in_float);

namespace cpu {

std::size_t attention_floats(const HeadShape& shape, std::uint32_t context_tokens) {
  // A window may begin up to 15 positions into its first tile, and the last tile may be part full.
  const std::size_t scores = std::size_t{context_tokens} + 32;
  const std::size_t by_vectors = scores_at(shape.head_dim) + group_rows * group_heads * scores;
  return std::max(by_vectors, tiled_attention_floats(shape, context_tokens));
}

void attend(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
            float* scratch) {
  SLUICE_ASSERT(pool.paired() || group.rows <= group_rows, "a group for tiles, not in pairs");
  if (group.rows > group_rows) return attend_in_tiles(work, pool, group, scratch);
  if (pool.paired()) return attend_in_pairs(work, pool, group, scratch);
  HWY_DYNAMIC_DISPATCH(attend_in_float)(work, pool, group, scratch);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
