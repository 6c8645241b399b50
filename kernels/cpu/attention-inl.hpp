// What attention in float32 and in bfloat16 share: which positions a query sees, how the queries of
// a group become register tiles, and the order in which they come. Included once per target.

#if defined(SLUICE_KERNELS_CPU_ATTENTION_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_KERNELS_CPU_ATTENTION_INL
#undef SLUICE_KERNELS_CPU_ATTENTION_INL
#else
#define SLUICE_KERNELS_CPU_ATTENTION_INL
#endif

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

/// The blocks of keys and values that a group attends to.
class SeenBlocks {
 public:
  HWY_INLINE SeenBlocks(const AttentionWork& work, const KvPool& pool, const QueryGroup& group)
      : pool_(pool),
        slot_(*group.slot),
        layer_(work.layer),
        kv_head_(group.head / (work.shape.heads / work.shape.kv_heads)) {}

  HWY_INLINE std::uint32_t tokens() const { return pool_.shape().block_tokens; }

  /// Where the block begins that holds a position's.
  HWY_INLINE const std::uint16_t* keys(std::uint32_t position) const {
    return pool_.keys(layer_, slot_.blocks[position / tokens()], kv_head_);
  }
  HWY_INLINE const std::uint16_t* values(std::uint32_t position) const {
    return pool_.values(layer_, slot_.blocks[position / tokens()], kv_head_);
  }

 private:
  const KvPool& pool_;
  const Slot& slot_;
  std::uint32_t layer_;
  std::uint32_t kv_head_;
};

// Of a register tile: queries, tiles of keys whose scores it holds for them, and sixteens of a head
// whose sums it holds for them. As many chains of multiply-adds as leave room for the loads, of
// which each then serves several: a core loads no faster than it multiplies and adds.
// (An arithmetic whose operands need more registers has tiles of fewer queries.)
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

/// cap * tanh(score / cap) * unit for scores [0, count), count a multiple of 16
HWY_INLINE void cap_scores(float cap, float unit, std::size_t count, float* scores) {
  for (std::size_t i = 0; i < count; i += 16) {
    store(tanh(load(scores + i) * set(1.0F / cap)) * set(cap * unit), scores + i);
  }
}

/// Of sixteen scores those from `first` to `last`, minus infinity for the others.
HWY_INLINE Lanes only(const Lanes& scores, float first, float last) {
  Lanes v;
  unroll<parts>([&](auto i) SLUICE_INLINE {
    const Part lane = hn::Iota(F(), static_cast<float>(i * part_lanes));
    const auto in = hn::And(hn::Ge(lane, hn::Set(F(), first)), hn::Lt(lane, hn::Set(F(), last)));
    v.part[i] = hn::IfThenElse(in, scores.part[i],
                               hn::Set(F(), -std::numeric_limits<float>::infinity()));
  });
  return v;
}

/// The highest of a query's scores, which start at position `base`. Of the first and the last tile,
/// lanes outside the range become minus infinity.
HWY_INLINE Lanes mask_scores(float* scores, std::uint32_t base, Range range) {
  const std::uint32_t first = range.begin / 16 * 16, last = (range.end - 1) / 16 * 16;
  const auto mask = [&](std::uint32_t tile) SLUICE_INLINE {
    const auto lane = [&](std::uint32_t position) SLUICE_INLINE {
      return static_cast<float>(static_cast<std::int32_t>(position - tile));
    };
    const Lanes seen_ones = only(load(scores + (tile - base)), lane(range.begin), lane(range.end));
    store(seen_ones, scores + (tile - base));
    return seen_ones;
  };
  Lanes top = mask(first);
  for (std::uint32_t p = first + 16; p < last; p += 16) top = max(top, load(scores + (p - base)));
  if (last != first) top = max(top, mask(last));
  return set(highest(top));
}

/// One query's part in a sum of values.
template <class Weight>
struct Weighted {
  const Weight* weights;  ///< by position - base
  float norm;
  float* out;
};

/// times norm; -0 becomes 0, for whether a sum that was flushed to zero keeps its sign depends on
/// what is added that a query does not see.
HWY_INLINE Lanes normalized(const Lanes& sum, float norm) { return sum * set(norm) + set(0.0F); }

/// out = normalized(out)
template <class Weight>
HWY_INLINE void normalize(const Weighted<Weight>& query, std::size_t head_dim) {
  std::size_t d = 0;
  for (; d + 16 <= head_dim; d += 16) {
    store(normalized(load(query.out + d), query.norm), query.out + d);
  }
  for (; d < head_dim; ++d) query.out[d] = query.out[d] * query.norm + 0.0F;
}

/// Has sum(count, range, go on or not, first query) called for all rows of a group of N heads:
/// several rows at once where a register tile holds them, over the positions that they all see, to
/// whole multiples of `unit`, before and after which each goes alone over the others that it sees,
/// in order of positions.
template <class How, std::size_t N, class Sum>
HWY_INLINE void sum_rows(const AttentionWork& work, const QueryGroup& group, Sum sum) {
  constexpr std::uint32_t unit = How::unit;
  constexpr std::uint32_t rows = std::min<std::uint32_t>(How::tile_queries / N, cpu::group_rows);
  constexpr std::integral_constant<std::size_t, N> one;
  std::uint32_t row = 0;
  if constexpr (rows > 1) {
    for (; row + rows <= group.rows; row += rows) {
      const std::uint32_t top = group.position + row;
      const Range common = {(seen(work, top + rows - 1).begin + unit - 1) / unit * unit,
                            seen(work, top).end / unit * unit};
      if (common.begin >= common.end) break;
      const bool before = seen(work, top).begin < common.begin;
      for (std::uint32_t r = 0; before && r < rows; ++r) {
        sum(one, {seen(work, top + r).begin, common.begin}, false, (row + r) * N);
      }
      sum(std::integral_constant<std::size_t, rows * N>(), common, before, row * N);
      for (std::uint32_t r = 0; r < rows; ++r) {
        const Range after = {common.end, seen(work, top + r).end};
        if (after.begin < after.end) sum(one, after, true, (row + r) * N);
      }
    }
  }
  for (; row < group.rows; ++row) sum(one, seen(work, group.position + row), false, row * N);
}

/// Scores of queries [0, count) against T tiles of keys, N queries at once, then fewer.
template <std::size_t N, std::size_t T, class How>
HWY_INLINE void score_queries(const How& how, const typename How::Query* queries,
                              std::size_t count, const typename How::KeyTile* keys, float* to,
                              std::size_t stride) {
  std::size_t q = 0;
  for (; q + N <= count; q += N) {
    how.template score<N, T>(queries + q, keys, nullptr, to + q * stride, stride);
  }
  if constexpr (N > 1) {
    constexpr std::size_t fewer = N > 4 ? 4 : N / 2;
    score_queries<fewer, T>(how, queries + q, count - q, keys, to + q * stride, stride);
  }
}

/// Attention of a group by `how`, an arithmetic: where its tiles of keys are, how scores come of
/// queries, weights of scores and sums of values.
template <class How>
HWY_INLINE void attend_by(How how, const AttentionWork& work, const QueryGroup& group,
                          float* scores) {
  const std::size_t head_dim = work.shape.head_dim;
  const std::uint32_t queries = group.rows * group.heads;
  const std::uint32_t base = seen(work, group.position).begin / 16 * 16;
  const std::uint32_t end = group.position + group.rows;
  const std::size_t stride = round16(end - base);
  typename How::Query query[cpu::group_rows * cpu::group_heads];
  Weighted<typename How::Weight> weighted[cpu::group_rows * cpu::group_heads];
  for (std::uint32_t q = 0; q < queries; ++q) {
    const std::size_t row = group.row + q / group.heads;
    const std::size_t column = (group.head + q % group.heads) * head_dim;
    query[q] = how.query(work.qkv.row(row) + column, q);
    weighted[q] = {how.weights(scores + q * stride), 0.0F, work.out.row(row) + column};
  }
  std::uint32_t tile = base;
  const auto several = [&](auto n) SLUICE_INLINE {
    constexpr std::size_t tiles = tiles_at_once(n);
    for (; tiles > 1 && tile + (tiles - 1) * tile_tokens < end; tile += tiles * tile_tokens) {
      typename How::KeyTile keys[tiles], next[tiles];
      for (std::uint32_t t = 0; t < tiles; ++t) {
        const std::uint32_t at = tile + t * tile_tokens;
        keys[t] = how.keys(at, t);
        next[t] = how.in_place() && at + tiles * tile_tokens < end
                      ? how.keys(at + tiles * tile_tokens, t)
                      : keys[t];
      }
      how.template score<n, tiles>(query, keys, next, scores + (tile - base), stride);
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
      typename How::KeyTile keys[tiles];
      for (std::uint32_t t = 0; t < tiles; ++t) keys[t] = how.keys(tile + t * tile_tokens, t);
      score_queries<How::tile_queries, tiles>(how, query, queries, keys, scores + (tile - base),
                                              stride);
    }
  };
  if constexpr (key_tiles > 1) {
    together(std::integral_constant<std::uint32_t, key_tiles>());
    together(std::integral_constant<std::uint32_t, key_tiles / 2>());
  }
  together(std::integral_constant<std::uint32_t, 1>());
  for (std::uint32_t q = 0; q < queries; ++q) {
    if (work.soft_cap > 0) cap_scores(work.soft_cap, How::unit_of_e, stride, scores + q * stride);
    const Range range = seen(work, group.position + q / group.heads);
    weighted[q].norm = how.softmax(scores + q * stride, base, range);
  }
  const auto sum = [&](auto n, Range range, bool go_on, std::uint32_t first) SLUICE_INLINE {
    std::size_t d = 0;
    for (; d + 16 * value_tile <= head_dim; d += 16 * value_tile) {
      how.template add_values<n, value_tile>(range, base, d, go_on, weighted + first);
    }
    for (; d < head_dim; d += 16) {
      how.template add_values<n, 1>(range, base, d, go_on, weighted + first);
    }
  };
  switch (group.heads) {
    case 1: sum_rows<How, 1>(work, group, sum); break;
    case 2: sum_rows<How, 2>(work, group, sum); break;
    case 3: sum_rows<How, 3>(work, group, sum); break;
    default: sum_rows<How, cpu::group_heads>(work, group, sum); break;
  }
  for (std::uint32_t q = 0; q < queries; ++q) normalize(weighted[q], head_dim);
}

}  // namespace sluice::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SLUICE_KERNELS_CPU_ATTENTION_INL
