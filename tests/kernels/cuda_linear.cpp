// Shows that every kernel of products computes the same: any number of activation rows, from one to
// more than the largest block has, gives each row the same bits, and they are right, for each way
// that weights lie on the device, and for columns that do not fill a section, a stage or a chunk.

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cuda/backend.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/reference.hpp"
#include "tests/kernels/tested.hpp"

namespace sluice::kernels::test {
namespace {

// Above what the largest block of kernels/cuda/linear_many.cu starts at.
constexpr std::uint32_t rows_most = 600;

/// Embeds tokens and multiplies; Weight{0} is the table, then weight and bias of each product.
struct Products {
  TinyModel model;
  std::vector<Buffer> outputs;

  Products(Format format, std::uint32_t cols, std::vector<std::uint32_t> widths) {
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
  explicit Runner(const Products& products)
      : products_(products), device_(on_cuda_host(), products.model, long_pool(products.model)) {
    device_.record();
    std::mt19937 random(5);
    tokens_ = random_tokens(random, products.model, rows_most);
  }

  std::vector<std::vector<float>> run(std::uint32_t rows) {
    Batch batch;
    const SlotRef slot{0, ++generation_};
    batch.opens.push_back({slot, {tokens_.begin(), tokens_.begin() + rows}, rows, {}});
    batch.grants.push_back({slot.slot, 0, {0}});
    batch.segments.push_back({slot, 0, rows, Path::prompt, false});
    batch.closes.push_back(slot);
    const StepResult result = device_.run(batch);
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
    std::vector<std::vector<float>> all;
    for (const Buffer& out : products_.outputs) all.push_back(device_.read(out, rows));
    return all;
  }

  /// What row r is in double, of what the device rounds.
  std::vector<double> expected(std::size_t product, std::uint32_t r) const {
    const Tensor& w = products_.model.tensors[1 + 2 * product];
    const Tensor& bias = products_.model.tensors[2 + 2 * product];
    const Tensor& table = products_.model.tensors[0];
    const bool full = w.host.format == Format::f32;
    const auto round = [full](double x) {
      return full ? x : static_cast<double>(bf16_to_f32(f32_to_bf16(static_cast<float>(x))));
    };
    std::vector<double> out(bias.values);
    for (std::size_t o = 0; o < w.host.rows; ++o) {
      for (std::size_t k = 0; k < w.host.cols; ++k) {
        out[o] += round(w.values[o * w.host.cols + k]) *
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

void check(const Products& products, std::initializer_list<std::uint32_t> counts) {
  Runner runner(products);
  const auto all = runner.run(std::max(counts));
  for (std::size_t p = 0; p < products.outputs.size(); ++p) {
    const std::size_t width = products.model.program.buffers[p + 1].width;
    for (std::uint32_t r = 0; r < std::min(std::max(counts), 20U); ++r) {
      const std::vector<double> expected = runner.expected(p, r);
      for (std::size_t o = 0; o < width; ++o) {
        BOOST_TEST_INFO("product " << p << ", row " << r << ", column " << o);
        BOOST_CHECK_SMALL(static_cast<double>(all[p][r * width + o]) - expected[o], 1e-4);
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

}  // namespace

BOOST_AUTO_TEST_SUITE(cuda_linear)

BOOST_AUTO_TEST_CASE(any_number_of_rows) {
  // Three products side by side, whose rows end within a block of every kernel.
  check(Products(Format::bf16, 192, {40, 130, 7}), {1, 7, 9, 16, 17, 70, 513, 600});
}

BOOST_AUTO_TEST_CASE(every_format_in_every_kernel) {
  for (std::size_t f = 0; f < format_count; ++f) {
    const auto format = static_cast<Format>(f);
    BOOST_TEST_CONTEXT(info(format).name) {
      check(Products(format, 256, {33}), {3, 12, 30, 520});
    }
  }
}

BOOST_AUTO_TEST_CASE(columns_that_end_anywhere) {
  for (const std::uint32_t cols : {8U, 40U, 64U, 96U, 200U, 264U, 576U}) {
    BOOST_TEST_CONTEXT(cols << " columns") {
      check(Products(Format::bf16, cols, {20}), {2, 13, 35});
    }
  }
  check(Products(Format::q8_0, 288, {20}), {2, 13, 35});
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
