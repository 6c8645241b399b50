// A gate as part of the products before it, for few rows: the same bits as apart from them, for
// every format, bias and activation, widths that fill no block and any number of rows, also beside
// the kernels for many rows. And that it is done only where nobody else could see the difference.

#include <boost/test/unit_test.hpp>
#include <random>
#include <vector>

#include "tests/kernels/step_runner.hpp"

namespace sluice::kernels::test {
namespace {

constexpr std::uint32_t rows_most = 64;

/// Embed, two products, their gate, and a product of it; for each of `layers`, in the same buffers.
struct Gated {
  TinyModel model;
  Buffer hidden{0}, pair{1}, out{2}, last{3};

  Gated(Format format, std::uint32_t cols, std::uint32_t width, Activation activation, bool bias,
        bool as_e4m3 = false, std::uint32_t layers = 2) {
    std::mt19937 random(width);
    model.traits.hidden = cols;
    model.traits.vocabulary = 50;
    model.traits.sample = false;
    model.program.buffers = {{RowSpace::batch, cols},
                             {RowSpace::batch, 2 * width},
                             {RowSpace::batch, width},
                             {RowSpace::batch, cols}};
    const auto tensor = [&](Format each, std::uint32_t rows, std::uint32_t columns) {
      model.tensors.push_back(random_tensor(random, each, rows, columns, 0.2F));
      return Weight{static_cast<std::uint32_t>(model.tensors.size() - 1)};
    };
    const Weight table = tensor(Format::f32, 50, cols);
    model.program.ops.push_back(Embed{table, hidden});
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      for (const std::uint32_t column : {0U, width}) {
        const Weight weight = tensor(format, width, cols);
        model.tensors.back().host.as_e4m3 = as_e4m3;
        const auto with = bias ? std::optional(tensor(Format::f32, 1, width)) : std::nullopt;
        model.program.ops.push_back(Linear{hidden, weight, with, pair, column});
      }
      model.program.ops.push_back(Gate{pair, activation, out});
      const Weight down = tensor(Format::bf16, cols, width);
      model.program.ops.push_back(Linear{out, down, {}, hidden, 0, true});
    }
    model.program.ops.push_back(Linear{out, tensor(Format::f16, cols, width), {}, last});
  }

  StepRunner runner(bool fuse_gates) const {
    return {model, {.fuse_gates = fuse_gates}, rows_most, {out, hidden, last}};
  }
};

/// Of packed weights (kernels/cuda/packed.cuh) at any number of rows, of others at a few.
void check(const Gated& gated, bool packed) {
  StepRunner fused = gated.runner(true), apart = gated.runner(false);
  BOOST_TEST(!fused.keeps(gated.pair));
  BOOST_TEST(apart.keeps(gated.pair));
  for (const std::uint32_t rows : {1U, 5U, 8U, 9U, 16U, 17U, 40U}) {
    BOOST_TEST_CONTEXT(rows << " rows") {
      BOOST_CHECK(fused.run(rows) == apart.run(rows));
      BOOST_TEST(apart.launches - fused.launches == (packed || rows <= 16 ? 2U : 0U));
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(fused_gates)

BOOST_AUTO_TEST_CASE(every_format_gives_the_same_bits) {
  for (std::size_t f = 0; f < format_count; ++f) {
    const auto format = static_cast<Format>(f);
    if (format == Format::f32) continue;
    BOOST_TEST_CONTEXT(info(format).name) {
      check(Gated(format, 256, 40, Activation::silu, false), true);
    }
  }
  check(Gated(Format::bf16, 200, 40, Activation::silu, false, true), true);
  check(Gated(Format::f32, 200, 40, Activation::silu, true, true), true);
}

BOOST_AUTO_TEST_CASE(widths_that_fill_no_block) {
  for (const std::uint32_t width : {1U, 7U, 9U, 33U}) {
    BOOST_TEST_CONTEXT(width << " columns") {
      check(Gated(Format::bf16, 72, width, Activation::gelu_tanh, true), width > 1);
    }
  }
  check(Gated(Format::f16, 1200, 20, Activation::gelu_tanh, false), true);
}

BOOST_AUTO_TEST_CASE(weights_that_are_not_packed) {
  const cuda_host::OlderDevice older;
  for (const Format format : {Format::f16, Format::bf16, Format::q6_k}) {
    check(Gated(format, 256, 40, Activation::silu, false), false);
  }
}

BOOST_AUTO_TEST_CASE(float32_weights_are_not_fused) {
  const Gated gated(Format::f32, 64, 24, Activation::silu, true);
  BOOST_TEST(gated.runner(true).keeps(gated.pair));
}

// Each would give another result, or read what was never written.
BOOST_AUTO_TEST_CASE(only_where_nobody_else_sees_it) {
  const Gated gated(Format::bf16, 64, 24, Activation::silu, false);
  const auto kept_with = [&](auto&& change) {
    Gated other = gated;
    change(other.model.program.ops);
    StepRunner fused = other.runner(true), apart = other.runner(false);
    for (const std::uint32_t rows : {3U, 20U}) BOOST_CHECK(fused.run(rows) == apart.run(rows));
    return fused.keeps(other.pair);
  };
  using Ops = std::vector<Op>;
  BOOST_TEST(!kept_with([](Ops&) {}));
  // Another gate of what is there still.
  const Gate again{gated.pair, Activation::gelu_tanh, gated.out};
  BOOST_TEST(kept_with([&](Ops& ops) { ops.push_back(again); }));
  BOOST_TEST(kept_with([&](Ops& ops) {
    ops.push_back(SoftCap{gated.pair, 1.0F});
    ops.push_back(again);
  }));
  // The second layer's other half adds to the first's; or there is none, and its gate takes that.
  BOOST_TEST(kept_with([](Ops& ops) { std::get<Linear>(ops[6]).accumulate = true; }));
  BOOST_TEST(kept_with([](Ops& ops) { std::get<Linear>(ops[6]).out_column = 0; }));
  BOOST_TEST(kept_with([](Ops& ops) { ops.erase(ops.begin() + 6); }));
  // The halves the other way round.
  BOOST_TEST(kept_with([](Ops& ops) {
    for (const std::size_t first : {1U, 5U}) {
      std::get<Linear>(ops[first]).out_column = 24;
      std::get<Linear>(ops[first + 1]).out_column = 0;
    }
  }));
}

// While some blocks write it, others may still read.
BOOST_AUTO_TEST_CASE(not_where_the_result_goes_to_what_the_products_read) {
  Gated gated(Format::bf16, 64, 64, Activation::silu, false, false, 1);
  std::mt19937 random(1);
  gated.model.tensors.push_back(random_tensor(random, Format::f32, 1, 64, 0.5F, 1.0F));
  const Weight gain{static_cast<std::uint32_t>(gated.model.tensors.size() - 1)};
  std::vector<Op>& ops = gated.model.program.ops;
  for (const std::size_t at : {1U, 2U}) std::get<Linear>(ops[at]).in = gated.out;
  ops.insert(ops.begin() + 1, Norm{gated.hidden, gain, 1e-5F, gated.out});
  StepRunner fused = gated.runner(true), apart = gated.runner(false);
  for (const std::uint32_t rows : {1U, 20U, 64U}) BOOST_CHECK(fused.run(rows) == apart.run(rows));
  BOOST_TEST(fused.keeps(gated.pair));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
