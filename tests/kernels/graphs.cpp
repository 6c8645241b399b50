// Steps that run as graphs: the same bits as kernel by kernel, whatever sizes follow each other,
// for a graph is larger than most steps that it serves. And where graphs do not work, the steps go
// on without.

#include "kernels/cuda/graphs.hpp"

#include <boost/test/unit_test.hpp>
#include <random>
#include <vector>

#include "kernels/cuda/backend.hpp"
#include "tests/kernels/harness.hpp"

namespace sluice::kernels::test {
namespace {

/// A pretended device that goes back to a sound one.
struct CleanDevice {
  ~CleanDevice() { cuda_host::take_complaints(); }
};

Factory with_graphs(bool graphs) {
  return [graphs](Completion done) {
    return require(make_cuda_backend(
        {.reserve_bytes = 0, .split_tokens = 64, .graphs = graphs, .nccl = ""}, std::move(done)));
  };
}

/// What a step yielded: tokens by slot, and its rows' logits.
struct Outcome {
  std::vector<std::pair<SlotIndex, Token>> tokens;
  std::vector<float> logits;

  bool operator==(const Outcome&) const = default;
};

/// Sequences that come and go by one random plan: prompts of any length, then tokens one by one in
/// steps of one to six rows, some of them drawn late for a mask.
std::vector<Outcome> run(bool graphs, const TinyModel& model, int steps) {
  std::mt19937 random(7);
  Device device(with_graphs(graphs), model);
  const std::uint32_t slots = model.pool().slots;
  const std::uint32_t blocks_each = 96 / model.traits.block_tokens;
  struct Running {
    SlotRef slot;
    std::uint32_t length = 0;  ///< 0: not open
    std::uint32_t end = 0;
  };
  std::vector<Running> running(slots);
  for (SlotIndex slot = 0; slot < slots; ++slot) running[slot].slot = {slot, 0};
  std::vector<Outcome> outcomes;
  for (int step = 0; step < steps; ++step) {
    Batch batch;
    batch.sample_now = step % 5 != 4;
    std::vector<SlotRef> drawn;
    for (Running& one : running) {
      if (random() % 3 == 0) continue;
      if (one.length == 0) {
        ++one.slot.generation;
        one.length = static_cast<std::uint32_t>(1 + random() % 12);
        one.end = one.length + static_cast<std::uint32_t>(random() % 70);
        SlotOpen open{one.slot, random_tokens(random, model, one.length), one.length, {}};
        open.sampling.seed = random();
        batch.opens.push_back(open);
        BlockGrant grant{one.slot.slot, 0, {}};
        for (std::uint32_t b = 0; b < blocks_each; ++b) {
          grant.blocks.push_back(one.slot.slot * blocks_each + b);
        }
        batch.grants.push_back(grant);
        batch.segments.push_back({one.slot, 0, one.length, Path::prompt, true});
      } else {
        batch.segments.push_back({one.slot, one.length++, 1, Path::decode, true});
      }
      drawn.push_back(one.slot);
      if (one.length < one.end || !batch.sample_now) continue;
      batch.closes.push_back(one.slot);
      one.length = 0;
    }
    if (batch.segments.empty()) continue;
    const bool late = !batch.sample_now;
    device.backend->submit(device.program, ++device.ticket, std::move(batch));
    if (late) {
      std::vector<Mask> masks;
      for (const SlotRef& slot : drawn) {
        masks.push_back({slot, std::vector<std::uint64_t>(5, 0x5555555555555555ULL)});
      }
      device.backend->sample(device.ticket, std::move(masks));
    }
    const StepResult result = device.results.take();
    BOOST_REQUIRE_MESSAGE(!result.failed, result.error.message);
    Outcome outcome;
    for (const SlotTokens& each : result.slots) {
      BOOST_REQUIRE(!each.error);
      outcome.tokens.emplace_back(each.slot.slot, each.tokens.at(0));
    }
    outcome.logits.resize(drawn.size() * model.traits.vocabulary);
    BOOST_REQUIRE(device.backend->read(device.program, model.logits, outcome.logits).has_value());
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

cuda::StepCounts decode_of(std::uint32_t rows, std::uint32_t splits) {
  return {rows, rows, rows, rows, splits, cuda::Draw::whole};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(graphs)

BOOST_AUTO_TEST_CASE(few_sizes_serve_all_steps) {
  PoolShape pool;
  pool.rows_max = 100;
  pool.slots = 90;
  pool.context_tokens = 40 * 32;
  cuda::DeviceState state;
  state.split_tokens = 32;
  std::uint32_t last = 0, sizes = 0;
  for (std::uint32_t rows = 1; rows <= 100; ++rows) {
    const cuda::StepCounts size = cuda::graph_size(decode_of(rows, 0), pool, state);
    BOOST_TEST(size.rows >= rows);
    BOOST_TEST(size.rows <= 100U);
    BOOST_TEST(2 * size.rows <= 3 * rows);
    BOOST_TEST(size.rows >= last);
    BOOST_TEST(size.splits == 0U);  // another kernel attends then
    BOOST_TEST(size.sampled == std::min(size.rows, 90U));  // the rows that there is room for
    BOOST_TEST(size.groups == size.rows);
    BOOST_TEST(size.single_groups == size.rows);
    sizes += size.rows != last;
    last = size.rows;
  }
  BOOST_TEST(sizes == 14U);
  for (const auto& [splits, due] :
       std::vector<std::pair<std::uint32_t, std::uint32_t>>{{1, 1}, {3, 4}, {32, 32}, {33, 40}}) {
    BOOST_TEST(cuda::graph_size(decode_of(2, splits), pool, state).splits == due);
  }
}

BOOST_AUTO_TEST_CASE(graphs_change_no_bit) {
  for (const Traits& traits : {Traits{}, Traits{.vocabulary = 317, .mixed_layers = true}}) {
    const TinyModel model = tiny_model(traits);
    const std::uint64_t before = cuda_host::calls("cudaGraphLaunch");
    const auto without = run(false, model, 40);
    BOOST_TEST(cuda_host::calls("cudaGraphLaunch") == before);
    const auto with = run(true, model, 40);
    const std::uint64_t launched = cuda_host::calls("cudaGraphLaunch") - before;
    BOOST_TEST(launched > 10U);
    BOOST_TEST(launched < with.size());
    BOOST_TEST((with == without));
  }
}

BOOST_AUTO_TEST_CASE(steps_go_on_where_graphs_do_not_work) {
  const CleanDevice clean;
  const TinyModel model = tiny_model({.layers = 1});
  const auto due = run(false, model, 15);
  for (const char* call :
       {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"}) {
    BOOST_TEST_CONTEXT(call) {
      const std::uint64_t before = cuda_host::calls("cudaGraphLaunch");
      cuda_host::fail_call(call, 1, cudaErrorInvalidValue);
      BOOST_TEST((run(true, model, 15) == due));
      BOOST_TEST(cuda_host::calls("cudaGraphLaunch") == before);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
