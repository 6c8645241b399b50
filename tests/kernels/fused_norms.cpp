// A norm as part of the products behind it, for a single row: the same bits as apart from them, for
// every way that weights are packed and rows that end anywhere, also what the norm itself leaves;
// and beside steps of more rows, of which each is normed once. And that it is done only where no
// block could read what another has written already.

#include <boost/test/unit_test.hpp>
#include <random>
#include <vector>

#include "tests/kernels/step_runner.hpp"

namespace sluice::kernels::test {
namespace {

constexpr std::uint32_t rows_most = 4;
constexpr std::uint32_t norms = 3;

/// Products side by side, a gate's two, whose result is added to the row, and one alone; each
/// behind a norm of the row.
struct Normed {
  TinyModel model;
  std::vector<Buffer> left;  ///< that a step leaves
  Buffer hidden{0};

  Normed(Format format, std::uint32_t cols, bool as_e4m3 = false) {
    std::mt19937 random(cols);
    model.traits.hidden = cols;
    model.traits.vocabulary = 50;
    model.traits.sample = false;
    const auto tensor = [&](Format each, std::uint32_t rows, std::uint32_t columns) {
      model.tensors.push_back(random_tensor(random, each, rows, columns, 0.2F));
      model.tensors.back().host.as_e4m3 = as_e4m3 && rows > 1 && each == format;
      return Weight{static_cast<std::uint32_t>(model.tensors.size() - 1)};
    };
    const auto buffer = [&](std::uint32_t width, bool is_left = true) {
      model.program.buffers.push_back({RowSpace::batch, width});
      const Buffer made{static_cast<std::uint32_t>(model.program.buffers.size() - 1)};
      if (is_left) left.push_back(made);
      return made;
    };
    const auto op = [&](Op made) { model.program.ops.push_back(made); };
    const auto normed = [&] {
      const Buffer out = buffer(cols);
      op(Norm{hidden, tensor(Format::f32, 1, cols), 1e-5F, out});
      return out;
    };
    hidden = buffer(cols);
    op(Embed{tensor(Format::f32, 50, cols), hidden});
    const Buffer first = normed(), beside = buffer(60);
    op(Linear{first, tensor(format, 40, cols), tensor(Format::f32, 1, 40), beside});
    op(Linear{first, tensor(format, 20, cols), {}, beside, 40});
    constexpr std::uint32_t width = 256;
    const Buffer second = normed(), pair = buffer(2 * width, false), gated = buffer(width);
    op(Linear{second, tensor(format, width, cols), {}, pair});
    op(Linear{second, tensor(format, width, cols), {}, pair, width});
    op(Gate{pair, Activation::silu, gated});
    op(Linear{gated, tensor(Format::bf16, cols, width), {}, hidden, 0, true});
    op(Linear{normed(), tensor(format, 33, cols), {}, buffer(33)});
  }

  StepRunner runner(bool fuse_norms) const {
    return {model, {.fuse_norms = fuse_norms}, rows_most, left};
  }
};

/// How many norms of one row are part of products, the bits being the same.
std::uint64_t count_fused(const Normed& normed) {
  StepRunner fused = normed.runner(true), apart = normed.runner(false);
  BOOST_CHECK(fused.run(3) == apart.run(3));
  BOOST_TEST(fused.launches == apart.launches);
  BOOST_CHECK(fused.run(1) == apart.run(1));
  return apart.launches - fused.launches;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(fused_norms)

BOOST_AUTO_TEST_CASE(every_format_gives_the_same_bits) {
  for (std::size_t f = 0; f < format_count; ++f) {
    const auto format = static_cast<Format>(f);
    BOOST_TEST_CONTEXT(info(format).name) {
      BOOST_TEST(count_fused(Normed(format, 512)) == (format == Format::f32 ? 0U : norms));
    }
  }
  BOOST_TEST(count_fused(Normed(Format::bf16, 512, true)) == norms);
}

// Of a thread of the norm's own kernel, of some of a block's, of all, and of several to each.
BOOST_AUTO_TEST_CASE(rows_that_end_anywhere) {
  for (const std::uint32_t cols : {8U, 72U, 576U, 1000U, 2048U, 2050U, 4096U, 8192U}) {
    BOOST_TEST_CONTEXT(cols << " columns") {
      BOOST_TEST(count_fused(Normed(Format::bf16, cols)) == norms);
    }
  }
  BOOST_TEST(count_fused(Normed(Format::q8_0, 1056)) == norms);
}

BOOST_AUTO_TEST_CASE(rows_that_no_block_keeps) {
  BOOST_TEST(count_fused(Normed(Format::bf16, 8200)) == 0U);
}

BOOST_AUTO_TEST_CASE(weights_that_are_not_packed) {
  const cuda_host::OlderDevice older;
  BOOST_TEST(count_fused(Normed(Format::bf16, 256)) == 0U);
}

BOOST_AUTO_TEST_CASE(only_where_nobody_writes_what_others_read) {
  const auto fused_with = [](auto&& change) {
    Normed normed(Format::bf16, 64);
    change(normed.model.program.ops, normed.hidden);
    return count_fused(normed);
  };
  BOOST_TEST(fused_with([](std::vector<Op>&, Buffer) {}) == norms);
  // The first norm's products go to its own input, one or both.
  BOOST_TEST(fused_with([](std::vector<Op>& ops, Buffer hidden) {
    auto& product = std::get<Linear>(ops[3]);
    product.out = hidden;
    product.out_column = 40;
  }) == norms - 1);
  // A norm adds to what is there, and products that read something else follow it.
  BOOST_TEST(fused_with([](std::vector<Op>& ops, Buffer) {
    std::get<Norm>(ops[1]).accumulate = true;
  }) == norms - 1);
  BOOST_TEST(fused_with([](std::vector<Op>& ops, Buffer hidden) {
    std::get<Linear>(ops.back()).in = hidden;
  }) == norms - 1);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
