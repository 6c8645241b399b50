// Shows that the CPU's attention over keys and values, in float16 and in pairs of bfloat16, is what
// its header says, against sums in double of the same rounded values: for heads of all sorts, with
// windows that begin and end in the middle of a pair and of a tile, on every instruction set and to
// the bit whether rows come alone or in groups, by vectors or by tiles; and that nothing in the
// pool counts but what a query sees, be it NaN, while what is not finite among that stays so.

#include "tests/kernels/cpu_targets.hpp"
// Before all that includes Highway's.
#include "kernels/cpu/attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include "kernels/cpu/layer_ops.hpp"
#include "kernels/quant.hpp"

namespace sluice::kernels::test {
namespace {

constexpr std::uint16_t nan_of_both = 0x7FFF;  ///< NaN as float16 and as bfloat16

struct Wanted {
  bool paired;
  HeadShape heads;
  std::uint32_t positions;
  std::uint32_t window = 0;
  float soft_cap = 0.0F;
  std::uint32_t block_tokens = 16;
};

/// Keys and values of one sequence, and queries at all its positions.
class Sequence {
 public:
  explicit Sequence(const Wanted& wanted) : wanted_(wanted) {
    const HeadShape& heads = wanted.heads;
    PoolShape shape;
    shape.layers = 2;
    shape.kv_heads = heads.kv_heads;
    shape.head_dim = heads.head_dim;
    shape.block_tokens = wanted.block_tokens;
    shape.blocks = 2 * (wanted.positions / wanted.block_tokens + 1);
    shape.context_tokens = wanted.positions;
    shape.slots = shape.rows_max = shape.vocabulary = 1;
    BOOST_REQUIRE(pool_.allocate(shape));
    if (wanted.paired) BOOST_REQUIRE(pool_.can_pair());
    pool_.pair(wanted.paired);
    const std::size_t elements = kv_block_bytes(shape) * shape.blocks / sizeof nan_of_both;
    std::fill_n(pool_.keys(0, 0, 0), elements, nan_of_both);
    for (std::uint32_t b = 0; b < shape.blocks / 2; ++b) slot_.blocks.push_back(2 * b + 1);

    std::mt19937 random(5);
    std::normal_distribution<float> value(0.0F, 1.0F);
    const std::size_t width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
    qkv_.resize(wanted.positions * width);
    for (float& x : qkv_) x = value(random);
    work_.qkv = {qkv_.data(), width};
    work_.shape = heads;
    work_.layer = 1;
    work_.scale = 0.7F;
    work_.window = wanted.window;
    work_.soft_cap = wanted.soft_cap;
    scratch_.resize(cpu::attention_floats(heads, wanted.positions));
    for (std::uint32_t p = 0; p < wanted.positions; ++p) store(p);
  }

  /// Of all rows, so many at once.
  std::vector<float> attended(std::uint32_t rows_at_once) {
    const HeadShape& heads = wanted_.heads;
    const std::uint32_t shared = heads.heads / heads.kv_heads;
    const std::uint32_t together = std::min(shared, cpu::group_heads);
    std::vector<float> out(wanted_.positions * heads.heads * heads.head_dim, 7.0F);
    work_.out = {out.data(), std::size_t{heads.heads} * heads.head_dim};
    for (std::uint32_t row = 0; row < wanted_.positions; row += rows_at_once) {
      const std::uint32_t rows = std::min(rows_at_once, wanted_.positions - row);
      for (std::uint32_t head = 0; head < heads.heads;) {
        const std::uint32_t left = shared - head % shared;
        cpu::QueryGroup group{&slot_, row, row, rows, head, std::min(left, together)};
        cpu::attend(work_, pool_, group, scratch_.data());
        head += group.heads;
      }
    }
    return out;
  }

  /// All that a position has becomes this.
  void spoil(std::uint32_t position, float value) {
    std::fill_n(work_.qkv.row(position), work_.qkv.stride, value);
    store(position);
  }
  /// Its values are so many times as large.
  void shrink_values(std::uint32_t position, float by) {
    const HeadShape& heads = wanted_.heads;
    float* values = work_.qkv.row(position) + (heads.heads + heads.kv_heads) * heads.head_dim;
    for (std::size_t i = 0; i < heads.kv_heads * heads.head_dim; ++i) values[i] *= by;
    store(position);
  }
  /// Its keys alone.
  void spoil_keys(std::uint32_t position, float value) {
    float* keys = work_.qkv.row(position) + wanted_.heads.heads * wanted_.heads.head_dim;
    std::fill_n(keys, wanted_.heads.kv_heads * wanted_.heads.head_dim, value);
    store(position);
  }

  bool same_rows(const std::vector<float>& a, const std::vector<float>& b, std::uint32_t first,
                 std::uint32_t last) const {
    const std::size_t width = work_.out.stride;
    return std::memcmp(a.data() + first * width, b.data() + first * width,
                       (last - first) * width * sizeof(float)) == 0;
  }
  bool none_finite(const std::vector<float>& out, std::uint32_t row) const {
    const std::size_t width = work_.out.stride;
    return std::none_of(out.data() + row * width, out.data() + (row + 1) * width,
                        [](float x) { return std::isfinite(x); });
  }

  /// The furthest that `out` is off from sums in double.
  double off(const std::vector<float>& out) const {
    const HeadShape& heads = wanted_.heads;
    double most = 0;
    for (std::uint32_t p = 0; p < wanted_.positions; ++p) {
      for (std::uint32_t h = 0; h < heads.heads; ++h) {
        const std::vector<double> expected = expected_of(p, h);
        const float* got = &out[(std::size_t{p} * heads.heads + h) * heads.head_dim];
        for (std::size_t d = 0; d < heads.head_dim; ++d) {
          const double apart = std::abs(expected[d] - static_cast<double>(got[d]));
          if (!(apart <= most)) most = apart;  // NaN is the furthest
        }
      }
    }
    return most;
  }

 private:
  const float* key(std::uint32_t position, std::uint32_t kv_head) const {
    return work_.qkv.row(position) + (wanted_.heads.heads + kv_head) * wanted_.heads.head_dim;
  }
  const float* value(std::uint32_t position, std::uint32_t kv_head) const {
    return key(position, wanted_.heads.kv_heads + kv_head);
  }
  double rounded(float x) const {
    return static_cast<double>(wanted_.paired ? bf16_to_f32(f32_to_bf16(x))
                                              : f16_to_f32(f32_to_f16(x)));
  }
  double rounded_weight(double w) const {
    return wanted_.paired ? rounded(static_cast<float>(w)) : w;
  }
  double query(float x) const {
    const bool powers_of_two = wanted_.paired && wanted_.soft_cap == 0;
    const float scale = powers_of_two ? work_.scale * std::numbers::log2e_v<float> : work_.scale;
    const double scaled = wanted_.paired ? rounded(x * scale) : static_cast<double>(x) * scale;
    return scaled / scale * work_.scale;
  }

  void store(std::uint32_t position) {
    for (std::uint32_t h = 0; h < wanted_.heads.kv_heads; ++h) {
      const std::uint32_t block = slot_.blocks[position / wanted_.block_tokens];
      const cpu::KvPlace place = pool_.place(1, block, h, position % wanted_.block_tokens);
      cpu::store_head(key(position, h), value(position, h), wanted_.heads.head_dim, nullptr, 0,
                      RopePairs::halves, place);
    }
  }

  std::vector<double> expected_of(std::uint32_t position, std::uint32_t head) const {
    const std::uint32_t dim = wanted_.heads.head_dim;
    const std::uint32_t kv_head = head / (wanted_.heads.heads / wanted_.heads.kv_heads);
    const std::uint32_t end = position + 1;
    const std::uint32_t begin = wanted_.window != 0 && end > wanted_.window ? end - wanted_.window
                                                                            : 0;
    const float* q = work_.qkv.row(position) + head * dim;
    std::vector<double> weights, sum(dim);
    for (std::uint32_t p = begin; p < end; ++p) {
      double score = 0;
      for (std::uint32_t d = 0; d < dim; ++d) score += query(q[d]) * rounded(key(p, kv_head)[d]);
      const auto cap = static_cast<double>(wanted_.soft_cap);
      weights.push_back(cap == 0 ? score : cap * std::tanh(score / cap));
    }
    const double top = *std::max_element(weights.begin(), weights.end());
    double total = 0;
    for (std::uint32_t p = begin; p < end; ++p) {
      const double weight = rounded_weight(std::exp(weights[p - begin] - top));
      total += weight;
      for (std::uint32_t d = 0; d < dim; ++d) sum[d] += weight * rounded(value(p, kv_head)[d]);
    }
    for (double& x : sum) x /= total;
    return sum;
  }

  Wanted wanted_;
  cpu::KvPool pool_;
  cpu::Slot slot_;
  cpu::AttentionWork work_;
  std::vector<float> qkv_, scratch_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(attention)

BOOST_AUTO_TEST_CASE(is_what_the_header_says) {
  std::vector<Wanted> all;
  for (const std::uint32_t window : {0U, 1U, 5U, 16U, 38U}) {
    all.push_back({true, {3, 1, 64}, 83, window});
    all.push_back({false, {3, 1, 64}, 83, window});
  }
  for (const HeadShape heads : {HeadShape{1, 1, 16}, HeadShape{4, 2, 80}, HeadShape{8, 1, 128},
                                HeadShape{5, 1, 48}}) {
    all.push_back({true, heads, 70, 33});
    all.push_back({false, heads, 70, 33});
  }
  all.push_back({false, {6, 2, 10}, 70, 33});
  all.push_back({true, {2, 1, 256}, 83, 0});  // values of several stretches
  all.push_back({true, {3, 1, 64}, 150, 70, 0.0F, 64});
  all.push_back({true, {3, 1, 64}, 70, 33, 5.0F});
  all.push_back({false, {3, 1, 64}, 70, 33, 5.0F});
  for (const Wanted& wanted : all) {
    BOOST_TEST_CONTEXT((wanted.paired ? "pairs, " : "float16, ")
                       << wanted.heads.heads << " heads of " << wanted.heads.head_dim
                       << ", window " << wanted.window << ", cap " << wanted.soft_cap) {
      Sequence sequence(wanted);
      const std::vector<float> alone = sequence.attended(1);
      // A weight in the middle between two bfloat16s may go the other way: 2^-8 of it.
      BOOST_TEST(sequence.off(alone) < (wanted.paired ? 4e-3 : 2e-5));
      on_every_target([&] {
        BOOST_TEST(same_bits(sequence.attended(1), alone));
        BOOST_TEST(same_bits(sequence.attended(3), alone));
        BOOST_TEST(same_bits(sequence.attended(cpu::group_rows), alone));
        if (!wanted.paired || !target_has_tiles()) return;
        for (const std::uint32_t rows : {cpu::group_rows + 1, 13U, cpu::tiled_group_rows}) {
          BOOST_TEST(same_bits(sequence.attended(rows), alone), rows << " rows by tiles");
        }
      });
    }
  }
}

// Of values around 2^-126 sums are flushed to zeros of either sign.
BOOST_AUTO_TEST_CASE(zeros_have_one_sign) {
  Sequence sequence({true, {3, 1, 80}, 150, 113});
  for (std::uint32_t p = 0; p < 150; ++p) sequence.shrink_values(p, 0x1p-124F);
  const std::vector<float> alone = sequence.attended(1);
  BOOST_TEST(std::count(alone.begin(), alone.end(), 0.0F) > 100);
  on_every_target([&] {
    BOOST_TEST(same_bits(sequence.attended(cpu::group_rows), alone));
    if (target_has_tiles()) BOOST_TEST(same_bits(sequence.attended(cpu::tiled_group_rows), alone));
  });
}

BOOST_AUTO_TEST_CASE(what_is_not_finite_stays_so) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const Wanted& wanted : {Wanted{true, {3, 1, 64}, 40}, Wanted{false, {3, 1, 64}, 40},
                               Wanted{true, {3, 1, 64}, 40, 0, 5.0F},
                               Wanted{false, {3, 1, 64}, 40, 0, 5.0F},
                               Wanted{true, {3, 1, 64}, 40, 5}, Wanted{false, {3, 1, 64}, 40, 5}}) {
    const std::uint32_t seen_until = wanted.window == 0 ? 40 : 17 + wanted.window;
    for (const float bad : {nan, -nan, infinity}) {
      if (bad == infinity && !wanted.paired) continue;  // is kept as the largest float16
      for (const bool keys_alone : {false, true}) {
        BOOST_TEST_CONTEXT((wanted.paired ? "pairs, " : "float16, ")
                           << bad << (keys_alone ? " in keys" : "") << ", cap "
                           << wanted.soft_cap << ", window " << wanted.window) {
          Sequence sequence(wanted);
          const std::vector<float> clean = sequence.attended(1);
          keys_alone ? sequence.spoil_keys(17, bad) : sequence.spoil(17, bad);
          on_every_target([&] {
            const auto check = [&](const std::vector<float>& out) {
              BOOST_TEST(sequence.same_rows(out, clean, 0, 17));
              for (std::uint32_t row = 17; row < seen_until; ++row) {
                BOOST_TEST(sequence.none_finite(out, row));
              }
              BOOST_TEST(sequence.same_rows(out, clean, seen_until, 40));
            };
            check(sequence.attended(cpu::group_rows));
            if (!wanted.paired || !target_has_tiles()) return;
            check(sequence.attended(cpu::tiled_group_rows));
          });
        }
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
