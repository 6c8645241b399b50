#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/lanes-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace sluice::kernels::HWY_NAMESPACE {

using cpu::AttentionWork;
using cpu::KvPool;
using cpu::QueryGroup;
using cpu::Slot;

constexpr std::uint32_t tile_tokens = 16;

constexpr std::size_t round16(std::size_t n) { return (n + 15) / 16 * 16; }

struct Range {
  std::uint32_t begin;
  std::uint32_t end;
};

/// Positions that the query at `position` sees.
HWY_INLINE Range seen(const AttentionWork& work, std::uint32_t position) {
  const std::uint32_t end = position + 1;
  return {work.window != 0 && end > work.window ? end - work.window : 0, end};
}

// Of a register tile: queries, tiles of keys whose scores it holds for them, and sixteens of a head
// whose sums it holds for them. As many chains of multiply-adds as leave room for the loads, of
// which each then serves several: a core loads no faster than it multiplies and adds.
constexpr std::size_t query_tile = 6;
#if HWY_CAP_GE512
constexpr std::size_t key_tiles = 4, value_tile = 4;  // 24 and 24 of 32 registers
constexpr std::size_t few_scores = 16;                // 16
#else
constexpr std::size_t key_tiles = 1, value_tile = 1;  // 12 of 16
constexpr std::size_t few_scores = 4;                 // 8
#endif

// A chain of multiply-adds waits for itself: this few queries, those of a step that decodes, need
// several tiles at once to keep the units busy.
constexpr std::size_t few_queries = 4;
constexpr std::size_t tiles_at_once(std::size_t queries) {
  return std::clamp<std::size_t>(few_scores / queries, 1, cpu::key_copies);
}

// How far ahead of their use values are asked for where few queries wait for memory.
constexpr std::uint32_t ahead_blocks = 4;

/// Halves of a tile of keys: element d of its sixteen positions at data[d * stride].
struct KeyTile {
  const std::uint16_t* data;
  std::size_t stride;
};

/// The keys of positions tile .. tile + 15, in place where a block holds them all, else copied from
/// the blocks below `end`.
HWY_INLINE KeyTile key_tile(const KvPool& pool, const Slot& slot, std::uint32_t layer,
                            std::uint32_t kv_head, std::uint32_t tile, std::uint32_t end,
                            std::uint16_t* copy) {
  const std::uint32_t block_tokens = pool.shape().block_tokens;
  const std::size_t head_dim = pool.shape().head_dim;
  if (block_tokens >= tile_tokens) {
    return {pool.keys(layer, slot.blocks[tile / block_tokens], kv_head) + tile % block_tokens,
            block_tokens};
  }
  for (std::uint32_t p = tile; p < std::min(end, tile + tile_tokens); ++p) {
    const std::uint16_t* from =
        pool.keys(layer, slot.blocks[p / block_tokens], kv_head) + p % block_tokens;
    for (std::size_t d = 0; d < head_dim; ++d) copy[d * 16 + (p - tile)] = from[d * block_tokens];
  }
  return {copy, 16};
}

/// Scores of N queries against T tiles of keys at once; asks for the `next` ones meanwhile, if any.
template <std::size_t N, std::size_t T>
HWY_INLINE void score_tiles(const float* const* queries, const KeyTile* keys, const KeyTile* next,
                            std::size_t head_dim, float scale, float* to, std::size_t stride) {
  Lanes acc[N * T];
  unroll<N * T>([&](auto i) SLUICE_INLINE { acc[i] = set(0.0F); });
  for (std::size_t d = 0; d < head_dim; ++d) {
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
      store(acc[n * T + t] * set(scale), to + n * stride + t * tile_tokens);
    });
  });
}

/// Scores of queries [0, count) against T tiles of keys, N queries at once, then fewer.
template <std::size_t N, std::size_t T>
HWY_INLINE void score_queries(const float* const* queries, std::size_t count, const KeyTile* keys,
                              std::size_t head_dim, float scale, float* to, std::size_t stride) {
  std::size_t q = 0;
  for (; q + N <= count; q += N) {
    score_tiles<N, T>(queries + q, keys, nullptr, head_dim, scale, to + q * stride, stride);
  }
  if constexpr (N > 1) {
    constexpr std::size_t fewer = N > 4 ? 4 : N / 2;
    score_queries<fewer, T>(queries + q, count - q, keys, head_dim, scale, to + q * stride, stride);
  }
}

/// cap * tanh(score / cap) for scores [0, count), count a multiple of 16
HWY_INLINE void cap_scores(float cap, std::size_t count, float* scores) {
  for (std::size_t i = 0; i < count; i += 16) {
    store(tanh(load(scores + i) * set(1.0F / cap)) * set(cap), scores + i);
  }
}

/// Weights of one query from its scores [begin, end), in place; scores start at position `base`.
/// Returns 1 / sum. Lanes of the first and last tile outside the range become weight 0.
HWY_INLINE float softmax(float* scores, std::uint32_t base, Range range) {
  const std::uint32_t first = range.begin / 16 * 16;
  for (std::uint32_t p = first; p < range.begin; ++p) {
    scores[p - base] = -std::numeric_limits<float>::infinity();
  }
  for (std::uint32_t p = range.end; p < round16(range.end); ++p) {
    scores[p - base] = -std::numeric_limits<float>::infinity();
  }
  Lanes top = set(-std::numeric_limits<float>::infinity());
  for (std::uint32_t p = first; p < range.end; p += 16) top = max(top, load(scores + (p - base)));
  const Lanes peak = set(highest(top));
  Lanes total = set(0.0F);
  for (std::uint32_t p = first; p < range.end; p += 16) {
    const Lanes weight = exp(load(scores + (p - base)) - peak);
    store(weight, scores + (p - base));
    total = total + weight;
  }
  return 1.0F / sum(total);
}

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

/// One query's part in a sum of values.
struct Weighted {
  const float* weights;  ///< by position - base
  float norm;
  float* out;
};

/// out = 0, or as it is to `go_on`, + sum of weights . values over a range of positions, for N
/// queries and D sixteens of their heads from element d on.
template <std::size_t N, std::size_t D>
HWY_INLINE void sum_values(const KvPool& pool, const Slot& slot, std::uint32_t layer,
                           std::uint32_t kv_head, Range range, std::uint32_t base, std::size_t d,
                           bool go_on, const Weighted* queries) {
  const std::uint32_t block_tokens = pool.shape().block_tokens;
  const std::size_t head_dim = pool.shape().head_dim;
  const std::size_t last = std::min<std::size_t>(16, head_dim - d - 16 * (D - 1));
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
    const std::uint16_t* from =
        pool.values(layer, slot.blocks[p / block_tokens], kv_head) + at * head_dim + d;
    const std::uint32_t later = p + run + (ahead_blocks - 1) * block_tokens;
    const std::uint16_t* next =
        later < range.end ? pool.values(layer, slot.blocks[later / block_tokens], kv_head) + d
                          : from;
    for (std::uint32_t t = 0; t < run; ++t, from += head_dim, next += head_dim) {
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

/// All elements of N queries' heads.
template <std::size_t N>
HWY_INLINE void sum_heads(const KvPool& pool, const Slot& slot, std::uint32_t layer,
                          std::uint32_t kv_head, Range range, std::uint32_t base, bool go_on,
                          const Weighted* queries) {
  const std::size_t head_dim = pool.shape().head_dim;
  std::size_t d = 0;
  for (; d + 16 * value_tile <= head_dim; d += 16 * value_tile) {
    sum_values<N, value_tile>(pool, slot, layer, kv_head, range, base, d, go_on, queries);
  }
  for (; d < head_dim; d += 16) {
    sum_values<N, 1>(pool, slot, layer, kv_head, range, base, d, go_on, queries);
  }
}

/// out *= norm
HWY_INLINE void normalize(const Weighted& query, std::size_t head_dim) {
  std::size_t d = 0;
  for (; d + 16 <= head_dim; d += 16) {
    store(load(query.out + d) * set(query.norm), query.out + d);
  }
  for (; d < head_dim; ++d) query.out[d] *= query.norm;
}

/// Has sum(count, range, go on or not, first query) called for all rows of a group of N heads:
/// several rows at once where a register tile holds them, over the positions that they all see,
/// before and after which each goes alone over those that only it does, in order of positions.
template <std::size_t N, class Sum>
HWY_INLINE void sum_rows(const AttentionWork& work, const QueryGroup& group, Sum sum) {
  constexpr std::uint32_t rows = std::min<std::uint32_t>(query_tile / N, cpu::group_rows);
  constexpr std::integral_constant<std::size_t, N> one;
  std::uint32_t row = 0;
  if constexpr (rows > 1) {
    for (; row + rows <= group.rows; row += rows) {
      const std::uint32_t top = group.position + row;
      const Range common = {seen(work, top + rows - 1).begin, seen(work, top).end};
      if (common.begin >= common.end) break;
      const bool before = seen(work, top).begin < common.begin;
      for (std::uint32_t r = 0; before && r < rows; ++r) {
        sum(one, {seen(work, top + r).begin, common.begin}, false, (row + r) * N);
      }
      sum(std::integral_constant<std::size_t, rows * N>(), common, before, row * N);
      for (std::uint32_t r = 1; r < rows; ++r) {
        sum(one, {common.end, seen(work, top + r).end}, true, (row + r) * N);
      }
    }
  }
  for (; row < group.rows; ++row) sum(one, seen(work, group.position + row), false, row * N);
}

void attend(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
            float* scratch) {
  const std::size_t head_dim = work.shape.head_dim;
  const std::uint32_t kv_head = group.head / (work.shape.heads / work.shape.kv_heads);
  const std::uint32_t queries = group.rows * group.heads;
  const std::uint32_t base = seen(work, group.position).begin / 16 * 16;
  const std::uint32_t end = group.position + group.rows;
  const std::size_t stride = round16(end - base);
  auto* copied_keys = reinterpret_cast<std::uint16_t*>(scratch);
  float* scores = scratch + cpu::key_copies * 8 * head_dim;
  const auto keys_at = [&](std::uint32_t tile, std::size_t copy) SLUICE_INLINE {
    return key_tile(pool, *group.slot, work.layer, kv_head, tile, end,
                    copied_keys + copy * 16 * head_dim);
  };

  const float* query[cpu::group_rows * cpu::group_heads];
  Weighted weighted[cpu::group_rows * cpu::group_heads];
  for (std::uint32_t q = 0; q < queries; ++q) {
    const std::size_t row = group.row + q / group.heads;
    const std::size_t column = (group.head + q % group.heads) * head_dim;
    query[q] = work.qkv.row(row) + column;
    weighted[q] = {scores + q * stride, 0.0F, work.out.row(row) + column};
  }
  std::uint32_t tile = base;
  const bool in_place = pool.shape().block_tokens >= tile_tokens;
  const auto several = [&](auto n) SLUICE_INLINE {
    constexpr std::size_t tiles = tiles_at_once(n);
    for (; tiles > 1 && tile + (tiles - 1) * tile_tokens < end; tile += tiles * tile_tokens) {
      KeyTile keys[tiles], next[tiles];
      for (std::uint32_t t = 0; t < tiles; ++t) {
        const std::uint32_t at = tile + t * tile_tokens;
        keys[t] = keys_at(at, t);
        next[t] = in_place && at + tiles * tile_tokens < end ? keys_at(at + tiles * tile_tokens, t)
                                                             : keys[t];
      }
      score_tiles<n, tiles>(query, keys, next, head_dim, work.scale, scores + (tile - base),
                            stride);
    }
  };
  switch (queries) {
    case 1: several(std::integral_constant<std::size_t, 1>()); break;
    case 2: several(std::integral_constant<std::size_t, 2>()); break;
    case 3: several(std::integral_constant<std::size_t, 3>()); break;
    case few_queries: several(std::integral_constant<std::size_t, few_queries>()); break;
    default: break;
  }
  const auto together = [&](auto tiles) SLUICE_INLINE {
    for (; tile + (tiles - 1) * tile_tokens < end; tile += tiles * tile_tokens) {
      KeyTile keys[tiles];
      for (std::uint32_t t = 0; t < tiles; ++t) keys[t] = keys_at(tile + t * tile_tokens, t);
      score_queries<query_tile, tiles>(query, queries, keys, head_dim, work.scale,
                                       scores + (tile - base), stride);
    }
  };
  if constexpr (key_tiles > 1) {
    together(std::integral_constant<std::uint32_t, key_tiles>());
    together(std::integral_constant<std::uint32_t, key_tiles / 2>());
  }
  together(std::integral_constant<std::uint32_t, 1>());
  for (std::uint32_t q = 0; q < queries; ++q) {
    if (work.soft_cap > 0) cap_scores(work.soft_cap, stride, scores + q * stride);
    const Range range = seen(work, group.position + q / group.heads);
    weighted[q].norm = softmax(scores + q * stride, base, range);
  }
  const auto sum = [&](auto n, Range range, bool go_on, std::uint32_t first) SLUICE_INLINE {
    sum_heads<n>(pool, *group.slot, work.layer, kv_head, range, base, go_on, weighted + first);
  };
  switch (group.heads) {
    case 1: sum_rows<1>(work, group, sum); break;
    case 2: sum_rows<2>(work, group, sum); break;
    case 3: sum_rows<3>(work, group, sum); break;
    default: sum_rows<cpu::group_heads>(work, group, sum); break;
  }
  for (std::uint32_t q = 0; q < queries; ++q) normalize(weighted[q], head_dim);
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(attend);

namespace cpu {

std::size_t attention_floats(const HeadShape& shape, std::uint32_t context_tokens) {
  // A window may begin up to 15 positions into its first tile, and the last tile may be part full.
  const std::size_t scores = std::size_t{context_tokens} + 32;
  return key_copies * 8 * std::size_t{shape.head_dim} + group_rows * group_heads * scores;
}

void attend(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
            float* scratch) {
  HWY_DYNAMIC_DISPATCH(attend)(work, pool, group, scratch);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
