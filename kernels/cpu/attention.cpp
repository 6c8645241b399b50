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

/// Widens the keys of positions tile .. tile + 15 below `end` into [head_dim, 16].
HWY_INLINE void load_keys(const KvPool& pool, const Slot& slot, std::uint32_t layer,
                          std::uint32_t kv_head, std::uint32_t tile, std::uint32_t end, float* to) {
  const std::uint32_t block_tokens = pool.shape().block_tokens;
  const std::size_t head_dim = pool.shape().head_dim;
  if (block_tokens >= tile_tokens) {
    const std::uint16_t* from =
        pool.keys(layer, slot.blocks[tile / block_tokens], kv_head) + tile % block_tokens;
    for (std::size_t d = 0; d < head_dim; ++d)
      store(load_half(from + d * block_tokens), to + d * 16);
    return;
  }
  for (std::uint32_t p = tile; p < std::min(end, tile + tile_tokens); ++p) {
    const std::uint16_t* from =
        pool.keys(layer, slot.blocks[p / block_tokens], kv_head) + p % block_tokens;
    for (std::size_t d = 0; d < head_dim; ++d) {
      to[d * 16 + (p - tile)] = f16_to_f32(from[d * block_tokens]);
    }
  }
}

HWY_INLINE void load_values(const KvPool& pool, const Slot& slot, std::uint32_t layer,
                            std::uint32_t kv_head, std::uint32_t tile, std::uint32_t end,
                            float* to) {
  const std::uint32_t block_tokens = pool.shape().block_tokens;
  const std::size_t head_dim = pool.shape().head_dim;
  for (std::uint32_t p = tile; p < std::min(end, tile + tile_tokens); ++p) {
    const std::uint16_t* from = pool.values(layer, slot.blocks[p / block_tokens], kv_head) +
                                p % block_tokens * head_dim;
    float* row = to + (p - tile) * round16(head_dim);
    std::size_t d = 0;
    for (; d + 16 <= head_dim; d += 16) store(load_half(from + d), row + d);
    for (; d < head_dim; ++d) row[d] = f16_to_f32(from[d]);
  }
}

/// Scores of N queries against one tile of keys.
template <std::size_t N>
HWY_INLINE void score_tile(const float* const* queries, const float* keys, std::size_t head_dim,
                           float scale, float* to, std::size_t stride) {
  Lanes acc[N];
  const float* query[N];
  unroll<N>([&](auto n) SLUICE_INLINE {
    acc[n] = set(0.0F);
    query[n] = queries[n];
  });
  for (std::size_t d = 0; d < head_dim; ++d) {
    const Lanes key = load(keys + d * 16);
    unroll<N>([&](auto n) SLUICE_INLINE { acc[n] = fma(set(query[n][d]), key, acc[n]); });
  }
  unroll<N>([&](auto n) SLUICE_INLINE { store(acc[n] * set(scale), to + n * stride); });
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

/// sums += weights . values for positions [begin, end) of one tile, N sixteens of the head at once.
template <std::size_t N>
HWY_INLINE void add_values(const float* weights, const float* values, std::size_t stride,
                           std::uint32_t begin, std::uint32_t end, float* sums) {
  Lanes acc[N];
  unroll<N>([&](auto n) SLUICE_INLINE { acc[n] = load(sums + 16 * n); });
  for (std::uint32_t t = begin; t < end; ++t) {
    const Lanes weight = set(weights[t]);
    unroll<N>([&](auto n) SLUICE_INLINE {
      acc[n] = fma(weight, load(values + t * stride + 16 * n), acc[n]);
    });
  }
  unroll<N>([&](auto n) SLUICE_INLINE { store(acc[n], sums + 16 * n); });
}

HWY_INLINE void add_tile(const float* weights, const float* values, std::size_t width,
                         std::uint32_t begin, std::uint32_t end, float* sums) {
  std::size_t d = 0;
  for (; d + 64 <= width; d += 64) add_values<4>(weights, values + d, width, begin, end, sums + d);
  for (; d < width; d += 16) add_values<1>(weights, values + d, width, begin, end, sums + d);
}

void attend(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
            float* scratch) {
  const std::size_t head_dim = work.shape.head_dim;
  const std::size_t width = round16(head_dim);
  const std::uint32_t kv_head = group.head / (work.shape.heads / work.shape.kv_heads);
  const std::uint32_t queries = group.rows * group.heads;
  const std::uint32_t base = seen(work, group.position).begin / 16 * 16;
  const std::uint32_t end = group.position + group.rows;
  const std::size_t stride = round16(end - base);
  float* keys = scratch;
  float* values = keys + 16 * head_dim;
  float* sums = values + 16 * width;
  float* scores = sums + queries * width;

  const float* query[cpu::group_rows * cpu::group_heads];
  for (std::uint32_t q = 0; q < queries; ++q) {
    query[q] =
        work.qkv.row(group.row + q / group.heads) + (group.head + q % group.heads) * head_dim;
  }
  for (std::uint32_t tile = base; tile < end; tile += tile_tokens) {
    load_keys(pool, *group.slot, work.layer, kv_head, tile, end, keys);
    float* to = scores + (tile - base);
    std::uint32_t q = 0;
    for (; q + 4 <= queries; q += 4) {
      score_tile<4>(query + q, keys, head_dim, work.scale, to + q * stride, stride);
    }
    for (; q < queries; ++q) {
      score_tile<1>(query + q, keys, head_dim, work.scale, to + q * stride, stride);
    }
  }

  float norms[cpu::group_rows * cpu::group_heads];
  std::fill(sums, sums + queries * width, 0.0F);
  for (std::uint32_t q = 0; q < queries; ++q) {
    if (work.soft_cap > 0) cap_scores(work.soft_cap, stride, scores + q * stride);
    norms[q] = softmax(scores + q * stride, base, seen(work, group.position + q / group.heads));
  }
  for (std::uint32_t tile = base; tile < end; tile += tile_tokens) {
    load_values(pool, *group.slot, work.layer, kv_head, tile, end, values);
    for (std::uint32_t q = 0; q < queries; ++q) {
      const Range range = seen(work, group.position + q / group.heads);
      const std::uint32_t from = std::max(range.begin, tile) - tile;
      const std::uint32_t to = std::min(range.end, tile + tile_tokens);
      if (to <= tile + from) continue;
      add_tile(scores + q * stride + (tile - base), values, width, from, to - tile,
               sums + q * width);
    }
  }
  for (std::uint32_t q = 0; q < queries; ++q) {
    float* out = work.out.row(group.row + q / group.heads) +
                 (group.head + q % group.heads) * head_dim;
    for (std::size_t d = 0; d < head_dim; ++d) out[d] = sums[q * width + d] * norms[q];
  }
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice::kernels {
HWY_EXPORT(attend);

namespace cpu {

std::size_t attention_floats(const HeadShape& shape, std::uint32_t context_tokens) {
  const std::size_t width = (std::size_t{shape.head_dim} + 15) / 16 * 16;
  // A window may begin up to 15 positions into its first tile, and the last tile may be part full.
  const std::size_t scores = std::size_t{context_tokens} + 32;
  return 16 * shape.head_dim + 16 * width + group_rows * group_heads * (width + scores);
}

void attend(const AttentionWork& work, const KvPool& pool, const QueryGroup& group,
            float* scratch) {
  HWY_DYNAMIC_DISPATCH(kernels::attend)(work, pool, group, scratch);
}

}  // namespace cpu
}  // namespace sluice::kernels
#endif
