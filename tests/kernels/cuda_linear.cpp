// Shows that every kernel of products computes the same: any number of activation rows, from one to
// more than the largest block has, gives each row the same bits, and they are right, for each way
// that weights lie on the device, and for columns that do not fill a section, a stage or a chunk.

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cuda/backend.hpp"
#include "kernels/cuda/unpack.cuh"
#include "tests/kernels/e4m3.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/kept_weights.hpp"
#include "tests/kernels/reference.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

// Above what the largest block of kernels/cuda/linear_many.cu starts at.
constexpr std::uint32_t rows_most = 600;

/// As the device is to keep it.
std::vector<double> narrowed(const Tensor& w) {
  std::vector<double> values;
  for (std::size_t r = 0; r < w.host.rows; ++r) {
    const double* row = w.values.data() + r * w.host.cols;
    double largest = 0;
    for (std::size_t k = 0; k < w.host.cols; ++k) largest = std::max(largest, std::abs(row[k]));
    const float scale = largest > 0 ? static_cast<float>(largest) / 448.0F : 1.0F;
    for (std::size_t k = 0; k < w.host.cols; ++k) {
      const float value = static_cast<float>(row[k]) / scale;
      values.push_back(e4m3_value(e4m3_nearest(value)) * scale);
    }
  }
  return values;
}

/// Embeds tokens and multiplies; Weight{0} is the table, then weight and bias of each product.
struct Products {
  TinyModel model;
  std::vector<Buffer> outputs;

  Products(Format format, std::uint32_t cols, std::vector<std::uint32_t> widths,
           bool as_e4m3 = false) {
    std::mt19937 random(cols);
    model.traits.hidden = cols;
    model.traits.vocabulary = 50;
    model.traits.sample = false;
    model.tensors.push_back(random_tensor(random, Format::f32, 50, cols, 1.0F));
    model.program.buffers.push_back({RowSpace::batch, cols});
    model.program.ops.push_back(Embed{{0}, {0}});
    for (const std::uint32_t width : widths) {
      const auto next = static_cast<std::uint32_t>(model.tensors.size());
      model.tensors.push_back(random_tensor(random, format, width, cols, 1.0F));
      model.tensors.back().host.as_e4m3 = as_e4m3;
      model.tensors.push_back(random_tensor(random, Format::f32, 1, width, 0.5F));
      model.program.buffers.push_back({RowSpace::batch, width});
      outputs.push_back({static_cast<std::uint32_t>(model.program.buffers.size() - 1)});
      model.program.ops.push_back(Linear{{0}, {next}, Weight{next + 1}, outputs.back()});
    }
  }
};

PoolShape long_pool(const TinyModel& model) {
  PoolShape pool = model.pool();
  pool.context_tokens = rows_most;
  pool.block_tokens = 1024;
  pool.blocks = 1;
  pool.rows_max = rows_most;
  return pool;
}

/// The products' results for the first `rows` of one sequence of tokens, in one step.
class Runner {
 public:
  Runner(const Products& products, const Factory& factory)
      : products_(products), device_(factory, products.model, long_pool(products.model)) {
    device_.record();
    std::mt19937 random(5);
    tokens_ = random_tokens(random, products.model, rows_most);
  }

  std::vector<std::vector<float>> run(std::uint32_t rows) {
    const StepResult result = device_.run(whole_sequence(tokens_, rows, ++generation_));
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
    std::vector<std::vector<float>> all;
    for (const Buffer& out : products_.outputs) all.push_back(device_.read(out, rows));
    return all;
  }

  /// What the magnitudes of a result's products come to: tensor cores cut sums off, toward zero.
  double size(std::size_t product, std::uint32_t r, std::size_t o) const {
    const Tensor& w = products_.model.tensors[1 + 2 * product];
    const Tensor& table = products_.model.tensors[0];
    double sum = std::abs(products_.model.tensors[2 + 2 * product].values[o]) + 1;
    for (std::size_t k = 0; k < w.host.cols; ++k) {
      sum += std::abs(w.values[o * w.host.cols + k] *
                      table.values[tokens_[r] * w.host.cols + k]);
    }
    return sum;
  }

  /// What row r is in double, of what the device rounds.
  std::vector<double> expected(std::size_t product, std::uint32_t r) const {
    const Tensor& w = products_.model.tensors[1 + 2 * product];
    const Tensor& bias = products_.model.tensors[2 + 2 * product];
    const Tensor& table = products_.model.tensors[0];
    const bool full = w.host.format == Format::f32 && !w.host.as_e4m3;
    const bool kept = device_.backend->device().bf16_weights;
    const std::vector<double> weights =
        w.host.as_e4m3 ? narrowed(w) : kept ? kept_weights(w) : w.values;
    const auto round = [full](double x) { return full ? x : rounded_bf16(x); };
    std::vector<double> out(bias.values);
    for (std::size_t o = 0; o < w.host.rows; ++o) {
      for (std::size_t k = 0; k < w.host.cols; ++k) {
        const double weight = weights[o * w.host.cols + k];
        out[o] += (w.host.as_e4m3 ? weight : round(weight)) *
                  round(table.values[tokens_[r] * w.host.cols + k]);
      }
    }
    return out;
  }

 private:
  const Products& products_;
  LoadedDevice device_;
  std::vector<Token> tokens_;
  std::uint32_t generation_ = 0;
};

void check(const Products& products, std::initializer_list<std::uint32_t> counts,
           const Factory& factory) {
  Runner runner(products, factory);
  const auto all = runner.run(std::max(counts));
  for (std::size_t p = 0; p < products.outputs.size(); ++p) {
    const std::size_t width = products.model.program.buffers[p + 1].width;
    for (std::uint32_t r = 0; r < std::min(std::max(counts), 20U); ++r) {
      const std::vector<double> expected = runner.expected(p, r);
      for (std::size_t o = 0; o < width; ++o) {
        BOOST_TEST_INFO("product " << p << ", row " << r << ", column " << o);
        const double off = static_cast<double>(all[p][r * width + o]) - expected[o];
        BOOST_CHECK_SMALL(off, 1e-5 * runner.size(p, r, o));
      }
    }
  }
  for (const std::uint32_t rows : counts) {
    const auto some = runner.run(rows);
    for (std::size_t p = 0; p < some.size(); ++p) {
      BOOST_TEST_INFO(rows << " rows, product " << p);
      BOOST_CHECK(std::equal(some[p].begin(), some[p].end(), all[p].begin()));
    }
  }
}

/// On the emulated device and on a real one.
void check(const Products& products, std::initializer_list<std::uint32_t> counts) {
  on_every_backend([&](const Tested& backend) {
    if (backend.name != "cpu") check(products, counts, backend.make);
  });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(cuda_linear)

BOOST_AUTO_TEST_CASE(any_number_of_rows) {
  // Three products side by side, whose rows end within a block of every kernel.
  check(Products(Format::bf16, 192, {40, 130, 7}), {1, 7, 9, 16, 17, 64, 65, 70, 513, 600});
}

// Of three blocks of activation rows the last has a neighbour that has none; of five, a row.
BOOST_AUTO_TEST_CASE(blocks_that_share_weights) {
  const std::uint64_t before = cuda_host::calls("cluster launch");
  check(Products(Format::bf16, 2304, {400, 7}), {257, 300, 513}, on_cuda_host());
  BOOST_TEST(cuda_host::calls("cluster launch") - before == 4U);  // one with all rows comes first
}

// A row alone is not packed, so it does not go with those beside it.
BOOST_AUTO_TEST_CASE(one_row_beside_others) {
  check(Products(Format::bf16, 64, {20, 1, 20}), {2, 20});
}

BOOST_AUTO_TEST_CASE(every_format_in_every_kernel) {
  for (std::size_t f = 0; f < format_count; ++f) {
    const auto format = static_cast<Format>(f);
    BOOST_TEST_CONTEXT(info(format).name) {
      check(Products(format, 256, {33}), {3, 12, 30, 520});
    }
  }
}

BOOST_AUTO_TEST_CASE(weights_narrowed_to_8_bits) {
  for (const Format format : {Format::f32, Format::f16, Format::bf16}) {
    BOOST_TEST_CONTEXT(info(format).name) {
      check(Products(format, 232, {33, 20}, true), {3, 12, 30, 520});
    }
  }
}

// So much that a warp asks for weights several times, the first before its kernel's turn.
BOOST_AUTO_TEST_CASE(columns_beyond_what_is_asked_for_at_once) {
  for (std::size_t f = 0; f < format_count; ++f) {
    const auto format = static_cast<Format>(f);
    BOOST_TEST_CONTEXT(info(format).name) { check(Products(format, 2304, {20}), {3, 12, 18}); }
  }
  check(Products(Format::bf16, 2304, {20}, true), {3, 12, 18});
}

// Rows of weights as they come, where a device has no products of wide.cuh.
BOOST_AUTO_TEST_CASE(weights_that_are_not_packed) {
  const cuda_host::OlderDevice older;
  check(Products(Format::bf16, 192, {40, 130, 7}), {1, 7, 9, 16, 17, 70, 600}, on_cuda_host());
  check(Products(Format::q4_k, 256, {20}), {3, 12, 18, 520}, on_cuda_host());
  check(Products(Format::bf16, 2304, {20}, true), {3, 12, 18, 520}, on_cuda_host());
}

BOOST_AUTO_TEST_CASE(eight_bit_floats) {
  alignas(8) std::uint8_t all[256];
  for (std::uint32_t i = 0; i < 256; ++i) all[i] = static_cast<std::uint8_t>(i);
  for (std::uint32_t i = 0; i < 256; i += 8) {
    const uint4 packed = cuda::UnpackE4m3::packed(cuda::load_eight<8>(all + i));
    const std::uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
    for (std::uint32_t k = 0; k < 8; ++k) {
      if (((i + k) & 0x7FU) == 0x7FU) continue;  // not a number, and never written
      const auto bits = static_cast<std::uint16_t>(words[k / 2] >> (16 * (k % 2)));
      BOOST_TEST(static_cast<double>(bf16_to_f32(bits)) == e4m3_value(i + k));
      BOOST_TEST(cuda::narrow_e4m3(bf16_to_f32(bits)) == i + k);
    }
  }
  std::mt19937 random(9);
  for (int i = 0; i < 20000; ++i) {
    const float size = std::ldexp(1.0F, static_cast<int>(random() % 20) - 11);
    const float value = std::uniform_real_distribution<float>(-size, size)(random);
    BOOST_TEST_INFO(value);
    BOOST_CHECK_EQUAL(cuda::narrow_e4m3(value), e4m3_nearest(value));
  }
  for (std::uint32_t bits = 0; bits < 0x7EU; ++bits) {  // ties
    const double between = (e4m3_value(bits) + e4m3_value(bits + 1)) / 2;
    BOOST_TEST(cuda::narrow_e4m3(static_cast<float>(between)) == e4m3_nearest(between));
  }
}

BOOST_AUTO_TEST_CASE(a_row_of_zeros_in_8_bits) {
  Products products(Format::f32, 64, {5}, true);
  Tensor& w = products.model.tensors[1];
  std::fill(w.bytes.begin() + 64 * 4, w.bytes.begin() + 2 * 64 * 4, std::byte{0});
  std::fill(w.values.begin() + 64, w.values.begin() + 128, 0.0);
  check(products, {3});
}

BOOST_AUTO_TEST_CASE(only_products_take_8_bits) {
  Products products(Format::f32, 64, {5});
  products.model.tensors[0].host.as_e4m3 = true;
  LoadedDevice device(on_cuda_host(), products.model, long_pool(products.model));
  const auto recorded = device.backend->record(products.model.program);
  BOOST_REQUIRE(!recorded);
  BOOST_TEST(recorded.error().message.find("for products alone") != std::string::npos);
  const auto cpu = on_cpu(1)([](StepResult&&) {});
  const auto refused = cpu->load(products.model.tensors[0].host);
  BOOST_REQUIRE(!refused);
  BOOST_CHECK(refused.error().code == ErrorCode::unsupported);
}

BOOST_AUTO_TEST_CASE(columns_that_end_anywhere) {
  // Of eight sections one, two, three and five, and all.
  for (const std::uint32_t cols : {8U, 40U, 64U, 96U, 200U, 264U, 576U, 1032U}) {
    BOOST_TEST_CONTEXT(cols << " columns") {
      check(Products(Format::bf16, cols, {20}), {2, 13, 35});
    }
  }
  check(Products(Format::q8_0, 288, {20}), {2, 13, 35});
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
