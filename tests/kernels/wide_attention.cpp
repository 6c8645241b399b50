// Attention of many rows by Hopper's own products: the same bits as by those of every device, for
// heads that fill its widths and heads that do not, windows, capped scores, splits of any length,
// and prompts that end anywhere, alone, beside others, and behind what is there already. And that
// it is taken where it can be, and nowhere else.

#include <algorithm>
#include <bit>
#include <boost/test/unit_test.hpp>
#include <random>
#include <vector>

#include "tests/kernels/step_runner.hpp"

namespace sluice::kernels::test {
namespace {

/// Cheap but for its attention. Weights of float32 take no products of Hopper's own.
TinyModel model_of(HeadShape heads, float score_cap = 0.0F) {
  return tiny_model({.format = Format::f32,
                     .hidden = 16,
                     .heads = heads,
                     .feed_forward = 16,
                     .vocabulary = 40,
                     .pairs = heads.head_dim / 2,
                     .window = 75,
                     .mixed_layers = true,
                     .score_cap = score_cap,
                     .context_tokens = 432,
                     .sample = false});
}

/// Steps of several sequences: how many rows each of them has in each step.
using Steps = std::vector<std::vector<std::uint32_t>>;

struct Ran {
  std::vector<std::uint32_t> bits;  ///< of what attention gave, all rows of all layers
  std::uint64_t wide = 0;           ///< launches of the kernel
};

Ran run(const TinyModel& model, const CudaOptions& options, const Steps& steps) {
  std::mt19937 random(3);
  LoadedDevice device(on_cuda_host_with(options), model);
  device.record();
  Blocks blocks(model, random);
  std::vector<Sequence> sequences(steps.front().size());
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    std::uint32_t rows = 0;
    for (const auto& step : steps) rows += step[i];
    sequences[i].slot = {static_cast<SlotIndex>(i), 0};
    sequences[i].tokens = random_tokens(random, model, rows);
    sequences[i].prompt_tokens = rows;
  }
  Ran ran;
  const std::uint64_t before = cuda_host::calls("launch of 384 threads");
  for (const auto& step : steps) {
    Batch batch;
    std::uint32_t rows = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      if (step[i] == 0) continue;
      sequences[i].plan(batch, step[i], false, blocks, model.traits.block_tokens);
      rows += step[i];
    }
    const StepResult result = device.run(batch);
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
    for (const Op& op : model.program.ops) {
      const auto* attention = std::get_if<Attention>(&op);
      if (attention == nullptr) continue;
      for (const float x : device.read(attention->out, rows)) {
        ran.bits.push_back(std::bit_cast<std::uint32_t>(x));
      }
    }
  }
  ran.wide = cuda_host::calls("launch of 384 threads") - before;
  return ran;
}

/// Steps that have rows beside single ones, which have kernels of their own.
std::uint64_t many_rows(const Steps& steps) {
  const auto has = [](const auto& step) {
    return std::any_of(step.begin(), step.end(), [](std::uint32_t rows) { return rows > 1; });
  };
  return static_cast<std::uint64_t>(std::count_if(steps.begin(), steps.end(), has));
}

void check(const TinyModel& model, const Steps& steps, std::uint32_t split_tokens = 64,
           bool taken = true) {
  const Ran wide = run(model, {.split_tokens = split_tokens}, steps);
  const Ran other = run(model, {.split_tokens = split_tokens, .wide_attention = false}, steps);
  BOOST_TEST(wide.wide == (taken ? model.traits.layers * many_rows(steps) : 0));
  BOOST_TEST(other.wide == 0U);
  BOOST_TEST((wide.bits == other.bits));
}

const Steps ragged{{150, 67, 2, 1}, {140, 1, 66, 1}, {1, 129, 0, 3}};

}  // namespace

BOOST_AUTO_TEST_SUITE(wide_attention)

BOOST_AUTO_TEST_CASE(heads_of_any_width) {
  for (const std::uint32_t width : {34U, 64U, 98U, 120U, 128U}) {
    BOOST_TEST_CONTEXT(width << " elements") { check(model_of({4, 2, width}), ragged); }
  }
  for (const std::uint32_t width : {32U, 66U, 96U, 130U}) {
    BOOST_TEST_CONTEXT(width << " elements") { check(model_of({2, 1, width}), {{70}}, 64, false); }
  }
}

// Of a group's queries fewer than two times four warps take, as many, and several blocks of them.
BOOST_AUTO_TEST_CASE(heads_that_share_in_any_number) {
  for (const HeadShape heads : {HeadShape{1, 1, 64}, HeadShape{3, 1, 64}, HeadShape{14, 2, 64}}) {
    BOOST_TEST_CONTEXT(heads.heads << " heads of " << heads.kv_heads) {
      check(model_of(heads), ragged);
    }
  }
}

BOOST_AUTO_TEST_CASE(splits_of_any_length) {
  for (const std::uint32_t split_tokens : {128U, 192U, 256U}) {
    BOOST_TEST_CONTEXT(split_tokens << " positions") {
      check(model_of({2, 1, 64}), {{293}, {139}}, split_tokens);
    }
  }
}

BOOST_AUTO_TEST_CASE(prompts_that_end_anywhere) {
  for (const std::uint32_t rows : {2U, 15U, 16U, 63U, 64U, 65U, 127U, 128U, 130U, 432U}) {
    BOOST_TEST_CONTEXT(rows << " rows") { check(model_of({1, 1, 64}), {{rows}}); }
  }
}

// Tiles end, and windows begin, beside the first position of four warps' queries.
BOOST_AUTO_TEST_CASE(prompts_that_begin_anywhere) {
  for (const std::uint32_t rows : {1U, 62U, 63U, 64U, 74U, 75U, 76U, 127U, 128U, 139U}) {
    BOOST_TEST_CONTEXT("behind " << rows << " rows") {
      check(model_of({1, 1, 64}), {{rows}, {130}});
    }
  }
}

BOOST_AUTO_TEST_CASE(capped_scores) {
  check(model_of({4, 2, 64}, 2.0F), ragged);
  check(model_of({2, 2, 128}, 5.0F), ragged);
}

BOOST_AUTO_TEST_CASE(devices_without_it) {
  const cuda_host::OlderDevice older;
  check(model_of({2, 1, 64}), {{70}}, 64, false);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
