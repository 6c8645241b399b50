// Vectors of 512 bits with byte dot products: what processors with tiles have; see matmul_int8.cpp.
#define HWY_WANT_AVX3_DL
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_tiles.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <limits>

#include "kernels/cpu/attention-inl.hpp"
#include "kernels/cpu/denormals.hpp"
#include "kernels/cpu/narrow-inl.hpp"
#include "kernels/cpu/tiles-inl.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/weights-inl.hpp"

// Attention in bfloat16 of many rows on a processor that multiplies tiles: to the bit what
// attention_bf16.cpp gives, whose two chains of 32 elements, or positions, are what the instruction
// adds up of a pair's first and second ones. So a word has two that are sixteen apart, of each pair
// the odd one first: keys and values, which lie in pairs, are put so for each group.
//
// Arithmetic intensity: sixteen queries by sixteen positions are, of a head of 64, four
// instructions of 16 cycles, where vectors need 2,048 multiply-adds, of half a cycle each. To put
// keys and values in order takes two operations and a store a line, 64 lines for all of a group's
// queries, of which there are three or four tiles. What bounds is what lies between, for vectors
// alone: sixteen lines of scores, of each some 25 operations, 200 cycles and more.

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3_DL

constexpr std::uint32_t tile_queries = 16;
constexpr std::size_t tile_floats = 256;
constexpr std::uint32_t block_positions = 32;
constexpr std::uint32_t most_queries = cpu::tiled_group_rows * cpu::group_heads;

/// Halves of a line: sixteen pairs.
constexpr std::size_t pair_line = 32;
alignas(64) constexpr std::uint16_t no_pairs[8 * pair_line] = {};

/// Sixteen lines of sixteen words, each two halves.
using HalfTile = std::uint16_t[16][pair_line];
/// Values of so many blocks of positions and sixteens of a head are put in order at once.
constexpr std::size_t value_tiles = head_dim_max / 16;

HWY_INLINE __m512i load_line(const std::uint16_t* from) { return _mm512_loadu_si512(from); }

/// Lines of a tile from two times eight lines of pairs, `stride` halves apart.
HWY_INLINE void put_in_order(const std::uint16_t* low, const std::uint16_t* high,
                             std::size_t stride, HalfTile& to) {
  for (std::size_t k = 0; k < 8; ++k, low += stride, high += stride) {
    store_chains(load_line(low), load_line(high), to + 2 * k);
  }
}

/// A line of a tile from sixteen words whose halves are of a block's first and second chain.
HWY_INLINE void store_line(__m512i words, void* to) {
  _mm512_storeu_si512(to, _mm512_shuffle_epi32(words, _MM_PERM_CDAB));
}

/// A group's attention, step by step.
template <class Tiles>
class TiledAttention {
 public:
  TiledAttention(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                 float* scratch)
      : work_(work),
        group_(group),
        seen_(work, pool, group),
        head_dim_(work.shape.head_dim),
        head_blocks_((head_dim_ + 31) / 32),
        head_tiles_(head_dim_ / 16),
        queries_(group.rows * group.heads),
        query_tiles_((queries_ + tile_queries - 1) / tile_queries),
        base_(seen(work, group.position).begin / block_positions * block_positions),
        end_(group.position + group.rows),
        blocks_((end_ - base_ + block_positions - 1) / block_positions),
        inputs_(scratch),
        sums_(inputs_ + query_tiles_ * head_blocks_ * tile_floats),
        scores_(sums_ + query_tiles_ * head_tiles_ * tile_floats) {}

  /// Whether all values are finite that some of the rows see and others do not, or none: those are
  /// multiplied with weights of 0.
  bool all_can_be_multiplied() const {
    const Range first = seen(work_, group_.position), last = seen(work_, end_ - 1);
    return finite(base_, last.begin) && finite(first.end, end_);
  }

  HWY_NOINLINE void attend() {
    round_queries();
    for (std::uint32_t b = 0; b < blocks_; ++b) score(b);
    if (work_.soft_cap > 0) {
      const std::size_t scores = query_tiles_ * 2 * blocks_ * tile_floats;
      cap_scores(work_.soft_cap, exponents_of_e, scores, scores_);
    }
    float norms[most_queries];
    for (std::uint32_t q = 0; q < queries_; ++q) norms[q] = softmax(q);
    // As many blocks together as there is room for their values.
    const auto stretch = static_cast<std::uint32_t>(value_tiles / head_tiles_);
    for (std::uint32_t b = 0; b < blocks_; b += stretch) {
      add_values(b, std::min(blocks_, b + stretch));
    }
    for (std::uint32_t q = 0; q < queries_; ++q) {
      float* out = row(work_.out, q);
      for (std::size_t i = 0; i < head_tiles_; ++i) {
        store(normalized(load(line(sum_tile(q / tile_queries, i), q)), norms[q]), out + 16 * i);
      }
    }
  }

 private:
  /// A query's head, in a view whose rows begin with those of queries.
  float* row(const cpu::RowView& rows, std::uint32_t q) const {
    return rows.row(group_.row + q / group_.heads) +
           (group_.head + q % group_.heads) * head_dim_;
  }

  float* input_tile(std::size_t tile, std::size_t block) const {
    return inputs_ + (tile * head_blocks_ + block) * tile_floats;
  }
  float* sum_tile(std::size_t tile, std::size_t sixteen) const {
    return sums_ + (tile * head_tiles_ + sixteen) * tile_floats;
  }
  /// Of each block's two the first becomes the weights'.
  float* score_tile(std::size_t tile, std::size_t block, std::size_t half) const {
    return scores_ + ((tile * blocks_ + block) * 2 + half) * tile_floats;
  }
  static float* line(float* tile, std::uint32_t q) { return tile + q % tile_queries * 16; }

  const std::uint16_t* keys(std::uint32_t position) const {
    return seen_.keys(position) + position % seen_.tokens() * head_dim_;
  }
  const std::uint16_t* values(std::uint32_t position) const {
    return seen_.values(position) + position % seen_.tokens() * head_dim_;
  }

  bool finite(std::uint32_t first, std::uint32_t last) const {
    constexpr std::int32_t exponents = 0x7F807F80;
    const __m512i infinite = _mm512_set1_epi32(exponents);
    __mmask32 any = 0;
    for (std::uint32_t p = first / 2 * 2; p < last; p += 2) {
      const std::int32_t even = p >= first ? 0x0000FFFF : 0;
      const std::int32_t odd = p + 1 < last ? static_cast<std::int32_t>(0xFFFF0000U) : 0;
      const __m512i mask = _mm512_set1_epi32((even | odd) & exponents);
      const std::uint16_t* from = values(p);
      for (std::size_t i = 0; i < head_tiles_; ++i) {
        const __m512i bits = _mm512_and_si512(load_line(from + 32 * i), mask);
        any |= _mm512_cmpeq_epi16_mask(bits, infinite);
      }
    }
    return any == 0;
  }

  /// Scaled, then rounded, and zeros for queries that are none.
  void round_queries() {
    const float scale = query_scale(work_);
    const auto words = [&](const float* from) SLUICE_INLINE {
      return narrow_words((load(from) * set(scale)).part[0]).raw;
    };
    for (std::uint32_t q = 0; q < query_tiles_ * tile_queries; ++q) {
      for (std::size_t b = 0; b < head_blocks_; ++b) {
        __m512i low = _mm512_setzero_si512(), high = low;
        if (q < queries_) {
          const float* from = row(work_.qkv, q) + 32 * b;
          low = words(from);
          if (2 * b + 1 < head_tiles_) high = words(from + 16);
        }
        store_line(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)),
                   line(input_tile(q / tile_queries, b), q));
      }
    }
  }

  /// Scores of a block's positions: of those that the group does not see they may be anything.
  HWY_NOINLINE void score(std::uint32_t block) {
    alignas(64) HalfTile keys_in_order[2][head_dim_max / 32];
    const std::uint32_t first = base_ + block * block_positions;
    for (std::uint32_t half = 0; half < 2; ++half) {
      const std::uint32_t position = first + half * tile_tokens;
      const std::uint16_t* from = keys(position < end_ ? position : first);
      for (std::size_t i = 0; i < head_blocks_; ++i) {
        const std::uint16_t* low = from + 16 * i * pair_line;
        if (2 * i + 1 < head_tiles_) {
          put_in_order(low, low + 8 * pair_line, pair_line, keys_in_order[half][i]);
        } else {
          put_in_order(low, no_pairs, pair_line, keys_in_order[half][i]);
        }
      }
    }
    std::size_t tile = 0;
    for (; tile + 2 <= query_tiles_; tile += 2) score_tiles<2>(block, tile, keys_in_order);
    if (tile < query_tiles_) score_tiles<1>(block, tile, keys_in_order);
  }

  /// Of T tiles of queries.
  template <std::size_t T, class Keys>
  HWY_INLINE void score_tiles(std::uint32_t block, std::size_t tile, const Keys& keys_in_order) {
    unroll<2 * T>([&](auto i) SLUICE_INLINE { tiles_.template zero<i>(); });
    for (std::size_t b = 0; b < head_blocks_; ++b) {
      unroll<2>([&](auto h) SLUICE_INLINE { tiles_.template load_b<6 + h>(keys_in_order[h][b]); });
      unroll<T>([&](auto t) SLUICE_INLINE {
        tiles_.template load_a<4 + t>(input_tile(tile + t, b));
        unroll<2>([&](auto h) SLUICE_INLINE { tiles_.template dot<h * T + t, 4 + t, 6 + h>(); });
      });
    }
    unroll<T>([&](auto t) SLUICE_INLINE {
      unroll<2>([&](auto h) SLUICE_INLINE {
        tiles_.template store<h * T + t>(score_tile(tile + t, block, h));
      });
    });
  }

  /// Rounded weights of a query from its scores, 0 outside its range. Returns 1 / sum.
  HWY_INLINE float softmax(std::uint32_t q) {
    const Range range = seen(work_, group_.position + q / group_.heads);
    const std::uint32_t first = (range.begin - base_) / block_positions;
    const std::uint32_t last = (range.end - 1 - base_) / block_positions;
    const auto scores = [&](std::uint32_t block, std::size_t half) SLUICE_INLINE {
      return line(score_tile(q / tile_queries, block, half), q);
    };
    Lanes top = set(-std::numeric_limits<float>::infinity());
    const auto mask = [&](std::uint32_t block) SLUICE_INLINE {
      for (std::uint32_t half = 0; half < 2; ++half) {
        const std::uint32_t tile = base_ + block * block_positions + half * tile_tokens;
        const auto lane = [&](std::uint32_t position) SLUICE_INLINE {
          return static_cast<float>(static_cast<std::int32_t>(position - tile));
        };
        float* at = scores(block, half);
        const Lanes seen_ones = only(load(at), lane(range.begin), lane(range.end));
        store(seen_ones, at);
        top = max(top, seen_ones);
      }
    };
    mask(first);
    for (std::uint32_t b = first + 1; b < last; ++b) {
      top = max(max(top, load(scores(b, 0))), load(scores(b, 1)));
    }
    if (last != first) mask(last);
    const Lanes peak = set(highest(top));
    Lanes total = set(0.0F);
    const auto weigh = [&](const float* from) SLUICE_INLINE {
      const Part weight = round_weight(power_of_two(load(from) - peak).part[0]);
      total.part[0] = hn::Add(total.part[0], weight);
      return _mm512_castps_si512(weight.raw);
    };
    for (std::uint32_t b = 0; b < first; ++b) store_line(_mm512_setzero_si512(), scores(b, 0));
    for (std::uint32_t b = first; b <= last; ++b) {
      const __m512i low = _mm512_srli_epi32(weigh(scores(b, 0)), 16);
      store_line(_mm512_or_si512(low, weigh(scores(b, 1))), scores(b, 0));
    }
    for (std::uint32_t b = last + 1; b < blocks_; ++b) {
      store_line(_mm512_setzero_si512(), scores(b, 0));
    }
    return 1.0F / sum(total);
  }

  /// Adds to the sums what blocks [first, last) give.
  HWY_NOINLINE void add_values(std::uint32_t first, std::uint32_t last) {
    alignas(64) HalfTile in_order[value_tiles];
    for (std::uint32_t b = first; b < last; ++b) {
      put_values_in_order(b, in_order + (b - first) * head_tiles_);
    }
    const auto add_all = [&](auto tiles_of_queries, std::size_t tile) SLUICE_INLINE {
      constexpr std::size_t T = tiles_of_queries();
      std::size_t i = 0;
      for (; i + 2 <= head_tiles_; i += 2) add_tiles<T, 2>(first, last, tile, i, in_order);
      if (i < head_tiles_) add_tiles<T, 1>(first, last, tile, i, in_order);
    };
    std::size_t tile = 0;
    for (; tile + 2 <= query_tiles_; tile += 2) {
      add_all(std::integral_constant<std::size_t, 2>(), tile);
    }
    if (tile < query_tiles_) add_all(std::integral_constant<std::size_t, 1>(), tile);
  }

  /// Of T tiles of queries and D sixteens of a head.
  template <std::size_t T, std::size_t D>
  HWY_INLINE void add_tiles(std::uint32_t first, std::uint32_t last, std::size_t tile,
                            std::size_t sixteen, const HalfTile* values_in_order) {
    const auto each = [&](auto body) SLUICE_INLINE {
      unroll<T>([&](auto t) SLUICE_INLINE {
        unroll<D>([&](auto d) SLUICE_INLINE { body(t, d); });
      });
    };
    each([&](auto t, auto d) SLUICE_INLINE {
      if (first == 0) return tiles_.template zero<t * D + d>();
      tiles_.template load_sums<t * D + d>(sum_tile(tile + t, sixteen + d));
    });
    for (std::uint32_t b = first; b < last; ++b) {
      const HalfTile* of_block = values_in_order + (b - first) * head_tiles_ + sixteen;
      unroll<D>([&](auto d) SLUICE_INLINE { tiles_.template load_b<6 + d>(of_block[d]); });
      unroll<T>([&](auto t) SLUICE_INLINE {
        tiles_.template load_a<4 + t>(score_tile(tile + t, b, 0));
        unroll<D>([&](auto d) SLUICE_INLINE {
          tiles_.template dot<t * D + d, 4 + t, 6 + d>();
        });
      });
    }
    each([&](auto t, auto d) SLUICE_INLINE {
      tiles_.template store<t * D + d>(sum_tile(tile + t, sixteen + d));
    });
  }

  /// With zeros for positions that the group does not see yet.
  void put_values_in_order(std::uint32_t block, HalfTile* to) const {
    const std::uint32_t first = base_ + block * block_positions;
    const std::size_t stride = 2 * head_dim_;
    if (first + block_positions <= end_) {
      const std::uint16_t *low = values(first), *high = values(first + tile_tokens);
      for (std::size_t i = 0; i < head_tiles_; ++i) {
        put_in_order(low + i * pair_line, high + i * pair_line, stride, to[i]);
      }
      return;
    }
    std::uint16_t copy[block_positions * head_dim_max];
    std::fill_n(copy, block_positions * head_dim_, std::uint16_t{0});
    for (std::uint32_t p = first; p < end_; p += 2) {
      std::uint16_t* pairs = copy + (p - first) * head_dim_;
      std::copy_n(values(p), stride, pairs);
      for (std::size_t d = 0; p + 1 == end_ && d < head_dim_; ++d) pairs[2 * d + 1] = 0;
    }
    for (std::size_t i = 0; i < head_tiles_; ++i) {
      const std::uint16_t* low = copy + i * pair_line;
      put_in_order(low, low + tile_tokens * head_dim_, stride, to[i]);
    }
  }

  const AttentionWork& work_;
  const QueryGroup& group_;
  SeenBlocks seen_;
  std::size_t head_dim_;
  std::size_t head_blocks_;  ///< 32 elements
  std::size_t head_tiles_;   ///< sixteens
  std::uint32_t queries_;
  std::size_t query_tiles_;
  std::uint32_t base_;    ///< the first block's first position
  std::uint32_t end_;
  std::uint32_t blocks_;  ///< of positions
  float* inputs_;         ///< [query_tiles][head_blocks] tiles
  float* sums_;           ///< [query_tiles][head_tiles]
  float* scores_;         ///< [query_tiles][blocks][2]
  Tiles tiles_;
};

template <class Tiles>
void attend_by_tiles(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch) {
  TiledAttention<Tiles> attention(work, pool, group, scratch);
  if (attention.all_can_be_multiplied()) return attention.attend();
  QueryGroup part = group;
  for (std::uint32_t r = 0; r < group.rows; r += part.rows) {
    part.row = group.row + r;
    part.position = group.position + r;
    part.rows = std::min(cpu::group_rows, group.rows - r);
    cpu::attend_in_pairs(work, pool, part, scratch);
  }
}

#endif

void attend_in_tiles([[maybe_unused]] const AttentionWork& work,
                     [[maybe_unused]] const KvPool& pool,
                     [[maybe_unused]] const QueryGroup& group, [[maybe_unused]] float* scratch) {
  const cpu::NoDenormals flushed;
#if SLUICE_TILES
  if (cpu::has_tiles()) return attend_by_tiles<ProcessorTiles<16>>(work, pool, group, scratch);
#endif
#if HWY_TARGET == HWY_AVX3_DL
  attend_by_tiles<LoopTiles<16>>(work, pool, group, scratch);
#else
  SLUICE_ASSERT(false, "a group for tiles where there are none");
#endif
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(attend_in_tiles);

namespace cpu {

std::size_t tiled_attention_floats(const HeadShape& shape, std::uint32_t context_tokens) {
  constexpr std::size_t tile = 256, tiles = tiled_group_rows * group_heads / 16;
  const std::size_t of_positions = 2 * ((std::size_t{context_tokens} + 31) / 32);
  return tiles * tile * ((shape.head_dim + 31) / 32 + shape.head_dim / 16 + of_positions);
}

void attend_in_tiles(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
                     float* scratch) {
  HWY_DYNAMIC_DISPATCH(attend_in_tiles)(work, pool, group, scratch);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
