// Shows that products with bfloat16 weights are, on every instruction set this machine has, in the
// processor's tiles too, and to the bit, the chains of multiply-adds that kernels/cpu/matmul.hpp
// says, computed here one by one: over random bits of any exponent, denormals, infinities and NaNs
// among them, with odd numbers of columns, and with every number of rows at once; and that
// activations are rounded as f32_to_bf16 rounds, for tiles in their order.

#include "tests/kernels/cpu_targets.hpp"
// Before all that includes Highway's.
#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/matmul.hpp"
#include "kernels/cpu/matmul_formats.hpp"
#include "kernels/quant.hpp"

namespace sluice::kernels::test {
namespace {

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x; }

/// acc + w * x, rounded once, with zeros for denormals.
float add(float acc, std::uint16_t w, std::uint16_t x) {
  return flushed(std::fma(flushed(bf16_to_f32(w)), flushed(bf16_to_f32(x)), acc));
}

/// A weight [rows, cols] and activations [count, cols] in bfloat16, and their product.
struct Case {
  std::uint32_t rows, cols, count;
  std::vector<std::uint16_t> weight, activations;

  template <class Value>
  Case(std::uint32_t weight_rows, std::uint32_t columns, std::uint32_t input_rows, Value value)
      : rows(weight_rows), cols(columns), count(input_rows) {
    for (std::size_t i = 0; i < std::size_t{rows} * cols; ++i) weight.push_back(value());
    for (std::size_t i = 0; i < std::size_t{count} * cols; ++i) activations.push_back(value());
  }

  float expected(std::uint32_t r, std::uint32_t o) const {
    // With the zeros behind the last column, which make 0 of a sum of -0.
    std::vector<std::uint16_t> w(cpu::padded(cols)), x(w.size());
    std::copy_n(&weight[std::size_t{o} * cols], cols, w.begin());
    std::copy_n(&activations[std::size_t{r} * cols], cols, x.begin());
    const auto chain = [&](std::size_t first) {
      float sum = 0;
      for (std::size_t c = first; c < first + 16; c += 2) {
        sum = add(add(sum, w[c + 1], x[c + 1]), w[c], x[c]);
      }
      return sum;
    };
    float sum = 0;
    for (std::size_t c = 0; c < w.size(); c += 32) {
      sum = flushed(sum + flushed(chain(c) + chain(c + 16)));
    }
    return sum;
  }

  /// [count, rows]
  std::vector<float> computed(bool tiles) const {
    cpu::PackedWeight packed = cpu::PackedWeight::of({Format::bf16, rows, cols});
    std::vector<std::uint8_t> bytes(packed.bytes());
    packed.data = bytes.data();
    for (std::uint32_t s = 0; s < packed.strips(); ++s) {
      const std::uint16_t* first = weight.data() + std::size_t{s} * cpu::strip_rows * cols;
      packed.fill(s, reinterpret_cast<const std::byte*>(first), std::size_t{2} * cols);
    }
    const auto padded = static_cast<std::uint32_t>(cpu::padded(cols));
    std::vector<std::uint16_t> rounded(cpu::NarrowView::bytes(count, padded, tiles) / 2);
    const cpu::NarrowView view{rounded.data(), padded, tiles};
    std::vector<float> row(padded);
    for (std::uint32_t r = 0; r < count; ++r) {
      for (std::size_t c = 0; c < cols; ++c) {
        row[c] = bf16_to_f32(activations[std::size_t{r} * cols + c]);
      }
      cpu::narrow(row.data(), 0, padded, view, r, count);
    }
    std::vector<float> out(std::size_t{count} * rows);
    const cpu::RoundedRows in{{}, view};
    cpu::multiply({&packed, nullptr, {}, in, {out.data(), rows}, false}, count, 0,
                  packed.strips());
    return out;
  }

  /// How many results are finite. With tiles too, of so many rows as use them.
  std::size_t check() const {
    if (target_has_tiles() && count >= cpu::NarrowView::tiled_rows) check(computed(true));
    return check(computed(false));
  }

  std::size_t check(const std::vector<float>& out) const {
    std::size_t off = 0, finite = 0;
    for (std::uint32_t r = 0; r < count; ++r) {
      for (std::uint32_t o = 0; o < rows; ++o) {
        const float due = expected(r, o), got = out[std::size_t{r} * rows + o];
        // Of a NaN, which bits it has is the processor's affair.
        const bool same = std::isnan(due) ? std::isnan(got)
                                          : std::bit_cast<std::uint32_t>(due) ==
                                                std::bit_cast<std::uint32_t>(got);
        off += !same;
        finite += std::isfinite(due);
      }
    }
    BOOST_TEST(off == 0U, off << " of " << out.size() << " differ, " << rows << " x " << cols
                              << ", " << count << " rows");
    return finite;
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(bf16)

BOOST_AUTO_TEST_CASE(the_same_chains_whatever_the_instructions_and_the_rows) {
  on_every_target([] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.1F, 1.0F);
    const auto value = [&] { return f32_to_bf16(normal(random)); };
    for (const std::uint32_t count : {1U, 2U, 3U, 4U, 8U, 12U, 27U, 48U}) {
      for (const std::uint32_t rows : {1U, 16U, 37U, 83U}) {
        Case(rows, 1 + static_cast<std::uint32_t>(random() % 99), count, value).check();
      }
    }
  });
}

// As many columns as need several stretches of unpacked weights, as many strips as need several
// groups, and rows several groups of tiles.
BOOST_AUTO_TEST_CASE(products_larger_than_what_tiles_keep) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.1F, 1.0F);
  const auto value = [&] { return f32_to_bf16(normal(random)); };
  Case(50, 1600, 35, value).check();
  Case(295, 450, 35, value).check();
  Case(34, 70, 1100, value).check();
}

// 2^-133 to 2^127, so that nearly every sum soon is infinite or lost; and products around 2^-126,
// where sums are denormal or begin to be.
BOOST_AUTO_TEST_CASE(any_bits) {
  on_every_target([] {
    std::mt19937 random(2);
    std::size_t finite = 0;
    for (const std::uint32_t cols : {1U, 2U, 3U, 6U, 40U}) {
      finite += Case(48, cols, 29, [&] { return static_cast<std::uint16_t>(random()); }).check();
    }
    BOOST_TEST(finite > 1000U);
    const auto small = [&] {  // 2^-71 to 2^-56, or any bits with an exponent of 0
      const auto bits = static_cast<std::uint32_t>(random());
      const std::uint32_t exponent = bits >> 16 & 7U ? 56 + (bits >> 20) % 16 : 0;
      return static_cast<std::uint16_t>((bits & 0x807FU) | exponent << 7);
    };
    for (const std::uint32_t cols : {2U, 7U, 64U}) {
      BOOST_TEST(Case(48, cols, 29, small).check() == 48U * 29U);
    }
  });
}

BOOST_AUTO_TEST_CASE(the_caller_keeps_its_denormals) {
  Case(16, 32, 1, [] { return std::uint16_t{0x3F80}; }).check();
  volatile float least = std::numeric_limits<float>::min();
  BOOST_TEST(std::fpclassify(least / 2) == FP_SUBNORMAL);
}

BOOST_AUTO_TEST_CASE(the_processors_dot_products_are_used) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string vendor, flags;
  for (std::string line; std::getline(cpuinfo, line) && flags.empty();) {
    if (line.starts_with("vendor_id")) vendor = line;
    if (line.starts_with("flags")) flags = line;
  }
  const bool has = flags.find("avx512_bf16") != std::string::npos &&
                   (hwy::SupportedTargets() & HWY_AVX3_DL) != 0;
  const bool slow = vendor.find("GenuineIntel") != std::string::npos;
  BOOST_TEST(cpu::bf16_by_dots() == (has && !slow));
}

BOOST_AUTO_TEST_CASE(activations_are_rounded_to_nearest_even) {
  std::vector<float> x;
  for (const std::uint32_t bits :
       {0x00000000U, 0x80000000U, 0x3F808000U, 0x3F818000U, 0x3F808001U, 0x3F807FFFU, 0x7F7FFFFFU,
        0xFF7FFFFFU, 0x7F800000U, 0xFF800000U, 0x7F800001U, 0xFFFFFFFFU, 0x7FFFFFFFU, 0x00008000U,
        0x00018000U, 0x007FFFFFU}) {
    x.push_back(std::bit_cast<float>(bits));
  }
  std::mt19937 random(3);
  while (x.size() < 4096) x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  const auto cols = static_cast<std::uint32_t>(x.size());
  on_every_target([&] {
    std::vector<std::uint16_t> out(x.size());
    cpu::narrow(x.data(), 0, cols / 2, {out.data(), cols}, 0, 1);
    BOOST_TEST(out[cols / 2] == 0);
    cpu::narrow(x.data(), cols / 2, cols, {out.data(), cols}, 0, 1);
    std::size_t off = 0;
    for (std::size_t i = 0; i < x.size(); ++i) off += out[i] != f32_to_bf16(x[i]);
    BOOST_TEST(off == 0U);
  });
}

BOOST_AUTO_TEST_CASE(rows_for_tiles_have_columns_sixteen_apart_in_a_word) {
  constexpr std::uint32_t rows = 21, cols = 96;
  std::mt19937 random(8);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(std::size_t{rows} * cols);
  for (float& value : x) value = normal(random);
  on_every_target([&] {
    std::vector<std::uint16_t> out(cpu::NarrowView::bytes(rows, cols, true) / 2);
    const cpu::NarrowView view{out.data(), cols, true};
    for (std::uint32_t r = 0; r < rows; ++r) {  // cut as gates cut rows
      cpu::narrow(&x[r * cols], 0, 32, view, r, rows);
      cpu::narrow(&x[r * cols], 32, cols, view, r, rows);
    }
    std::size_t off = 0;
    for (std::uint32_t r = 0; r < rows; ++r) {
      for (std::uint32_t c = 0; c < cols; ++c) {
        const std::uint16_t* words = view.tile(r / 16)[c / 32].values[r % 16];
        const std::size_t word = c % 16 ^ 1U, half = c / 16 % 2;
        off += words[2 * word + half] != f32_to_bf16(x[r * cols + c]);
      }
    }
    BOOST_TEST(off == 0U);
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
