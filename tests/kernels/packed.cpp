// Shows that products of packed weights are what they say: for every format, random weights of
// ragged shapes times rows (rounded as the format has it, for bfloat16 also as they are) against
// the sum in double of the same values, alone and in any number of rows to the bit; and that
// rounding to int8 is to the nearest step of each sixteen, which is its block's halved as often as
// their values allow, five times at most, zero where all are zero, NaN where one is not finite; and
// that tiles, the processor's or else a loop, give the same bits as dot products.

#include "tests/kernels/cpu_targets.hpp"
// Before all that includes Highway's.
#include "kernels/cpu/matmul.hpp"

#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/tiles.hpp"
#include "tests/kernels/harness.hpp"

namespace sluice::kernels::test {
namespace {

/// Rows of activations, as they are and rounded.
struct Inputs {
  mutable std::vector<float> x;  ///< [rows, cols]
  std::uint32_t cols;
  std::vector<std::byte> bytes;
  std::vector<std::uint16_t> halves;
  cpu::RoundedRows view;

  Inputs(std::vector<float> values, std::size_t width, bool tiles = false)
      : x(std::move(values)), cols(static_cast<std::uint32_t>(width)) {
    const std::size_t rows = x.size() / cols;
    bytes.resize(cpu::QuantizedView::bytes(rows, cols, tiles));
    halves.resize(cpu::NarrowView::bytes(rows, cols, tiles) / 2);
    view = {{bytes.data(), cols, tiles}, {halves.data(), cols, tiles}};
    for (std::size_t r = 0; r < rows; ++r) cpu::round_row(&x[r * cols], 0, cols, view, r, rows);
  }

  /// What a product reads.
  double value(cpu::Activations activations, std::size_t r, std::uint32_t c) const {
    switch (activations) {
      case cpu::Activations::f32: return x[r * cols + c];
      case cpu::Activations::bf16: return bf16_to_f32(view.bf16.row(r)[c]);
      case cpu::Activations::int8: break;
    }
    return quantized(r, c);
  }

  double quantized(std::size_t r, std::uint32_t c) const {
    return step(r, c) * view.int8.row(r)[c / 32].values[c % 32];
  }

  /// Of the sixteen of column c.
  double step(std::size_t r, std::uint32_t c) const {
    const cpu::QuantizedBlock& block = view.int8.row(r)[c / 32];
    const double unit = static_cast<double>(block.origins[c / 16 % 2]) / (1.5 * 8388608);  // 2^23
    return static_cast<double>(block.step) * unit;
  }

  /// Rows from r on.
  cpu::RoundedRows row(std::size_t r) const {
    return {{view.int8.data + r * cpu::QuantizedView::row_bytes(cols), cols},
            {view.bf16.row(r), cols}};
  }
};

std::vector<float> random_values(std::mt19937& random, std::size_t count) {
  std::normal_distribution<float> value(0.3F, 1.0F);
  std::vector<float> values(count);
  for (float& x : values) x = value(random);
  return values;
}

/// Rows of `cols` values, padded with zeros.
std::vector<float> random_rows(std::mt19937& random, std::size_t rows, std::uint32_t cols) {
  std::vector<float> x;
  for (std::size_t r = 0; r < rows; ++r) {
    const std::vector<float> values = random_values(random, cols);
    x.insert(x.end(), values.begin(), values.end());
    x.resize((r + 1) * cpu::padded(cols));
  }
  return x;
}

/// A weight and its memory.
struct Packed {
  cpu::PackedWeight weight;
  std::vector<std::uint8_t> bytes;

  explicit Packed(const Tensor& tensor)
      : weight(cpu::PackedWeight::of({tensor.host.format, tensor.host.rows, tensor.host.cols})),
        bytes(weight.bytes()) {
    weight.data = bytes.data();
    const std::size_t row = row_bytes(weight.format, weight.cols);
    for (std::uint32_t s = 0; s < weight.strips(); ++s) {
      weight.fill(s, tensor.bytes.data() + s * cpu::strip_rows * row, row);
    }
  }
};

constexpr std::uint32_t several = 27;  // tiles of 12, 8, 4, 2 and 1 rows
constexpr std::uint32_t many = 139;    // and of 128, whose weights are unpacked once

void check_products(std::mt19937& random, const Tensor& tensor, cpu::Activations read,
                    std::uint32_t count) {
  const Packed packed(tensor);
  const cpu::PackedWeight& weight = packed.weight;
  const std::uint32_t rows = weight.rows, cols = weight.cols;
  const Inputs in(random_rows(random, count, cols), cpu::padded(cols));
  const bool rounded = read != cpu::Activations::f32;
  std::vector<float> bias(48), out(count * rows, 7.0F);
  for (std::uint32_t i = 0; i < rows; ++i) bias[i] = static_cast<float>(i);
  const auto multiply = [&](std::uint32_t first, std::uint32_t n, float* to) {
    const cpu::RowView x{in.x.data() + first * in.cols, in.cols};
    const cpu::RoundedRows narrowed = rounded ? in.row(first) : cpu::RoundedRows{};
    cpu::multiply({&weight, bias.data(), x, narrowed, {to, rows}, true}, n, 0, weight.strips());
  };
  multiply(0, count, out.data());
  double off = 0;
  for (std::uint32_t r = 0; r < count; ++r) {
    for (std::uint32_t o = 0; o < rows; ++o) {
      double sum = 7.0 + o;
      for (std::uint32_t c = 0; c < cols; ++c) {
        sum += tensor.values[o * cols + c] * in.value(read, r, c);
      }
      off = std::max(off, std::abs(sum - static_cast<double>(out[r * rows + o])));
    }
  }
  BOOST_TEST(off < 1e-4, info(weight.format).name << " " << rows << " x " << cols << ": " << off);
  for (std::uint32_t r = 0; r < count; ++r) {
    std::vector<float> alone(rows, 7.0F);
    multiply(r, 1, alone.data());
    BOOST_CHECK(std::memcmp(alone.data(), &out[r * rows], rows * sizeof(float)) == 0);
  }
}

/// The weight times rows in either form, to the bit; where the one target with tiles can run.
void check_tiles(const Tensor& tensor, const std::vector<float>& x, std::uint32_t count) {
  if (!target_has_tiles()) return;
  const Packed packed(tensor);
  const cpu::PackedWeight& weight = packed.weight;
  const std::size_t cols = x.size() / count;
  const Inputs in_rows(x, cols), in_tiles(x, cols, true);
  BOOST_TEST_REQUIRE((in_tiles.view.int8.tiled(count) && in_tiles.view.bf16.tiled(count)));
  const std::vector<float> bias(cpu::padded(weight.rows), 0.25F);
  // Once as it is, once with what may lie beside.
  const auto multiply = [&](const Inputs& in) {
    std::vector<float> out(2 * count * weight.rows, 7.0F);
    const std::uint32_t cut = weight.strips() / 2;  // no task has all strips
    for (const auto& [first, last] : {std::pair(0U, cut), std::pair(cut, weight.strips())}) {
      const cpu::RowView alone{out.data(), weight.rows};
      cpu::multiply({&weight, nullptr, {}, in.view, alone, false}, count, first, last);
      const cpu::RowView beside{out.data() + count * weight.rows, weight.rows};
      cpu::multiply({&weight, bias.data(), {}, in.view, beside, true}, count, first, last);
    }
    return out;
  };
  const std::vector<float> expected = multiply(in_rows);
  const std::vector<float> out = multiply(in_tiles);
  BOOST_TEST(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0,
             info(weight.format).name << " " << weight.rows << " x " << weight.cols << ", "
                                      << count << " rows");
}

}  // namespace

BOOST_AUTO_TEST_SUITE(packed)

BOOST_AUTO_TEST_CASE(every_format_and_shape) {
  std::mt19937 random(3);
  for (std::size_t f = 0; f < format_count; ++f) {
    const auto format = static_cast<Format>(f);
    const std::uint32_t unit = info(format).block_elements;
    for (const std::uint32_t rows : {1U, 16U, 37U}) {
      const auto cols = static_cast<std::uint32_t>(unit * (1 + random() % (unit == 1 ? 99 : 3)));
      const Tensor tensor = random_tensor(random, format, rows, cols, 1.0F);
      check_products(random, tensor, cpu::activations_of(format), several);
      if (format == Format::bf16) check_products(random, tensor, cpu::Activations::f32, several);
    }
    if (unit == 1) continue;
    const std::uint32_t cols = unit == 32 ? 1184 : 1280;  // more than are unpacked at once
    const Tensor wide = random_tensor(random, format, 37, cols, 0.3F);
    on_every_target([&] { check_products(random, wide, cpu::activations_of(format), many); });
  }
}

// Whoever changes these raises packed_version, for files of the old layout are kept somewhere.
BOOST_AUTO_TEST_CASE(each_format_is_packed_as_its_version_says) {
  BOOST_REQUIRE_EQUAL(cpu::packed_version, 1U);
  const std::pair<Format, std::uint64_t> all[] = {
      {Format::f32, 0x6677FC3C52C8D817U}, {Format::f16, 0xE9718D02DF72DF48U},
      {Format::bf16, 0x612329D23CD4E7ECU}, {Format::q4_0, 0x1CC93576B2F1EAFAU},
      {Format::q4_1, 0x3B43FBB85B89AC0FU}, {Format::q5_0, 0xD2889654FAB1F205U},
      {Format::q5_1, 0xD85051BA48833672U}, {Format::q8_0, 0x9F4A73A1ABAC0FBFU},
      {Format::q4_k, 0x8ADB83126A008D42U}, {Format::q5_k, 0xFE545005DE353F31U},
      {Format::q6_k, 0x619AC3CA79089BF6U}};
  BOOST_TEST(std::size(all) == format_count);
  for (const auto& [format, expected] : all) {
    constexpr std::uint32_t rows = 37;
    const std::uint32_t cols = info(format).block_elements == 1 ? 515 : 512;
    const std::size_t stride = row_bytes(format, cols);
    std::mt19937 random(7);
    std::vector<std::byte> in_file(rows * stride);
    for (std::byte& byte : in_file) byte = static_cast<std::byte>(random());
    cpu::PackedWeight packed = cpu::PackedWeight::of({format, rows, cols});
    std::vector<std::uint8_t> bytes(packed.bytes());
    packed.data = bytes.data();
    for (std::uint32_t strip = 0; strip < packed.strips(); ++strip) {
      packed.fill(strip, in_file.data() + strip * cpu::strip_rows * stride, stride);
    }
    std::uint64_t hash = 0xCBF29CE484222325U;  // FNV-1a
    for (const std::uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001B3U;
    BOOST_TEST(hash == expected, fmt::format("{}: {:#018x}", info(format).name, hash));
  }
}

BOOST_AUTO_TEST_CASE(rounding_is_to_the_nearest_step) {
  constexpr std::uint32_t cols = 416;  // eight blocks at once, and five
  std::mt19937 random(4);
  std::vector<float> x = random_values(random, cols);
  std::fill(x.begin(), x.begin() + 32, 0.0F);
  x[40] = -1000.0F;
  for (std::uint32_t c = 64; c < 128; ++c) x[c] = std::ldexp(x[c], 128 - static_cast<int>(c) * 2);
  x[130] = x[146] = 100.0F;
  const Inputs in(x, cols);
  const cpu::QuantizedBlock* blocks = in.view.int8.row(0);
  BOOST_TEST(blocks[0].step == 0.0F);
  BOOST_TEST(blocks[1].values[8] == -127);
  BOOST_TEST(blocks[4].values[2] == 127);
  BOOST_TEST(blocks[4].values[18] == 127);
  for (std::uint32_t b = 0; b < cols / 32; ++b) {
    const auto step_of_both = static_cast<double>(blocks[b].step);
    double sum = 0;
    for (std::uint32_t half = 0; half < 2; ++half) {
      const std::uint32_t first = 32 * b + 16 * half;
      const double step = in.step(0, first);
      double largest = 0;
      int quants = 0;
      for (std::uint32_t c = first; c < first + 16; ++c) {
        const auto value = static_cast<double>(x[c]);
        BOOST_TEST(std::abs(in.quantized(0, c) - value) <= step * 0.500001);
        largest = std::max(largest, std::abs(value));
        quants += blocks[b].values[c % 32];
      }
      if (step_of_both > 0) {
        const double halved = step / step_of_both;
        BOOST_TEST(std::exp2(std::round(std::log2(halved))) == halved);
        // Once more would be too often, but where there are no more halvings.
        BOOST_TEST((largest > step * 127 * 0.499999 || halved == std::exp2(-cpu::halvings_max)));
      }
      const auto zero = std::bit_cast<std::int32_t>(blocks[b].origins[half]);
      BOOST_TEST(blocks[b].starts_8[half] == zero - 8 * quants);
      BOOST_TEST(blocks[b].starts_128[half] == zero - 128 * quants);
      sum += step * quants;
    }
    BOOST_TEST(std::abs(sum - static_cast<double>(blocks[b].sum)) <= 1e-6 * std::abs(sum));
  }
}

BOOST_AUTO_TEST_CASE(tiles_give_the_same_bits) {
  std::mt19937 random(9);
  for (std::size_t f = 0; f < format_count; ++f) {
    const auto format = static_cast<Format>(f);
    const std::uint32_t unit = info(format).block_elements;
    if (cpu::activations_of(format) == cpu::Activations::f32) continue;
    // 1 to 7 blocks, so that all numbers of them are left over; more rows than quantized weights
    // are unpacked once for, and tiles that are not full; a strip alone and one that is not full.
    for (std::uint32_t blocks = 1; blocks <= 7; ++blocks) {
      const std::uint32_t cols = unit <= 32 ? 32 * blocks : 256 * ((blocks + 3) / 4);
      const auto count = static_cast<std::uint32_t>(blocks == 5 ? 301 : 64 + random() % 40);
      const Tensor tensor = random_tensor(random, format, blocks == 3 ? 170 : 37, cols, 1.0F);
      std::vector<float> x = random_values(random, count * cols);
      // Halves of all sizes beside each other, zeros, and what is not finite.
      for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = std::ldexp(x[i], static_cast<int>(i / 16 * 2654435761U % 97) / 8 - 6);
      std::fill_n(x.begin() + 16, 16, 0.0F);
      std::fill_n(x.begin() + cols, 32, 0.0F);
      if (format != Format::bf16) {  // which NaN comes of one is the processor's affair
        x[2 * cols + 5] = std::numeric_limits<float>::infinity();
        x[3 * cols + 6] = std::numeric_limits<float>::quiet_NaN();
      }
      check_tiles(tensor, x, count);
    }
  }
}

// As large as a block's sums become: beyond 2^24 of their unit float32 would round them, and then
// in another order to another number.
BOOST_AUTO_TEST_CASE(tiles_are_exact_with_the_largest_quants_and_most_halvings) {
  std::mt19937 random(10);
  Tensor tensor = random_tensor(random, Format::q8_0, 16, 64, 1.0F);
  constexpr std::size_t block_bytes = 34;
  for (std::size_t b = 0; b < tensor.bytes.size() / block_bytes; ++b) {
    std::byte* quants = &tensor.bytes[b * block_bytes + 2];
    std::fill_n(quants, 31, std::byte{0x80});
    quants[31] = std::byte{0x81};  // odd, and halved, or all would be multiples of 128
  }
  constexpr std::uint32_t count = 64, cols = 64;
  std::vector<float> x(count * cols);
  for (std::uint32_t i = 0; i < x.size(); ++i) {
    const int halved = i / 16 % 2 == 0 ? 0 : -cpu::halvings_max;
    x[i] = std::ldexp(127.0F, halved);
  }
  const Inputs rounded(x, cols);
  BOOST_TEST(rounded.step(0, 16) == rounded.step(0, 0) * std::exp2(-cpu::halvings_max));
  BOOST_TEST(rounded.view.int8.row(0)->values[16] == 127);
  // One halving more, and float32 could not hold such a sum.
  const auto sum = [](int halvings) {
    const double unit = std::exp2(-halvings);
    return 127.0 * (16 * 128 + unit * (15 * 128 + 127));
  };
  const auto exact = [](double value) {
    return static_cast<double>(static_cast<float>(value)) == value;
  };
  BOOST_TEST(exact(sum(cpu::halvings_max)));
  BOOST_TEST(!exact(sum(cpu::halvings_max + 1)));
  check_tiles(tensor, x, count);
}

BOOST_AUTO_TEST_CASE(the_processors_tiles_are_used) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string flags;
  while (std::getline(cpuinfo, flags) && !flags.starts_with("flags")) continue;
#if defined(__clang__)
  BOOST_TEST(!cpu::has_tiles());
#else
  const bool has = flags.find("amx_tile") != std::string::npos &&
                   flags.find("amx_bf16") != std::string::npos &&
                   (hwy::SupportedTargets() & HWY_AVX3_DL) != 0;
  BOOST_TEST(cpu::has_tiles() == has);
#endif
  BOOST_TEST_MESSAGE("tiles by " << (cpu::has_tiles() ? "the processor" : "a loop"));
}

BOOST_AUTO_TEST_CASE(rounding_is_the_same_however_it_is_cut) {
  constexpr std::uint32_t cols = 672;
  std::mt19937 random(6);
  std::vector<float> x = random_values(random, cols);
  for (float& value : x) value = std::ldexp(value, static_cast<int>(random() % 80) - 40);
  x[100] = std::numeric_limits<float>::infinity();
  x[500] = -std::numeric_limits<float>::quiet_NaN();
  const Inputs whole(x, cols);
  on_every_target([&] {
    for (std::uint32_t cut = 0; cut <= cols; cut += 32) {
      Inputs parts(x, cols);
      std::fill(parts.bytes.begin(), parts.bytes.end(), std::byte{0x5A});
      cpu::quantize(x.data(), cut, cols, parts.view.int8, 0, 1);
      const auto before = parts.bytes.begin() + 2 * cut;  // 64 bytes for 32 columns
      BOOST_TEST(std::all_of(parts.bytes.begin(), before,
                             [](std::byte b) { return b == std::byte{0x5A}; }));
      cpu::quantize(x.data(), 0, cut, parts.view.int8, 0, 1);
      BOOST_TEST((parts.bytes == whole.bytes), "cut at " << cut);
    }
  });
}

BOOST_AUTO_TEST_CASE(what_is_not_finite_stays_so) {
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(),
                          -std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x(32, 1.0F);
    x[17] = bad;
    const Inputs in(x, 32);
    std::mt19937 random(5);
    for (const Format format : {Format::q4_0, Format::bf16}) {
      const Packed packed(random_tensor(random, format, 16, 32, 1.0F));
      std::vector<float> out(16);
      const cpu::RowView row{in.x.data(), 32};
      cpu::multiply({&packed.weight, nullptr, row, in.view, {out.data(), 16}, false}, 1, 0, 1);
      for (const float y : out) {
        BOOST_TEST((format == Format::bf16 ? !std::isfinite(y) : std::isnan(y)));
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
