// Engines of several ranks, each in a process: they agree on what they load and on the size of
// their pools, or name who differs.

#include "actors/load.hpp"

#include <boost/test/unit_test.hpp>

#include "tests/kernels/ranks.hpp"

namespace sluice::actors {
namespace {

using kernels::test::RankEnd;
using kernels::test::run_ranks;

EngineConfig smollm2() {
  EngineConfig config;
  config.name = "engine";
  config.model = SLUICE_MODELS "/SmolLM2-135M-Instruct-Q4_1.gguf";
  config.backend = "cpu";
  config.threads = 1;
  config.slots = 2;
  config.context_tokens = 64;
  return config;
}

Result<LoadedEngine> load(const EngineConfig& config,
                          const std::shared_ptr<kernels::Communicator>& group) {
  const BackendFactory on_cpu = [](const EngineConfig& engine, kernels::Completion completion) {
    return kernels::make_backend("cpu", {.threads = engine.threads}, std::move(completion));
  };
  return load_engine(config, {}, on_cpu, [](kernels::StepResult&&) {}, {}, group);
}

/// What three ranks report of their engines, each with its own configuration.
std::vector<RankEnd> load_three(const std::function<void(std::uint32_t, EngineConfig&)>& change) {
  return run_ranks(3, [&](const auto& group) {
    EngineConfig config = smollm2();
    change(group->shard().rank, config);
    const auto loaded = load(config, group);
    if (!loaded) return loaded.error().message;
    return fmt::format("{} {} {}", loaded->facts->numerics, loaded->facts->scheduler.blocks,
                       loaded->facts->scheduler.context_tokens);
  });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(load_ranks)

BOOST_AUTO_TEST_CASE(ranks_agree_on_numerics_and_on_the_smallest_pool) {
  // A block is 30 layers of one key head here: 2 * 2 * 30 * 64 * 16 bytes.
  const std::uint64_t block = 122'880;
  const auto ends = load_three([&](std::uint32_t rank, EngineConfig& config) {
    config.kv_bytes = (7 - rank) * block;
  });
  for (const RankEnd& end : ends) {
    BOOST_TEST(end.report == ends.front().report);
    BOOST_TEST(end.report.ends_with(" 5 64"), end.report);
  }
  const auto one = run_ranks(1, [](const auto&) {
    return load(smollm2(), nullptr).value().facts->numerics;
  });
  const auto group_of_one = run_ranks(1, [](const auto& group) {
    return load(smollm2(), group).value().facts->numerics;
  });
  BOOST_TEST(one.front().report == group_of_one.front().report);
  BOOST_TEST(one.front().report != ends.front().report.substr(0, 32));
  BOOST_TEST(one.front().report.size() == 32U);
}

BOOST_AUTO_TEST_CASE(a_rank_that_differs_is_named) {
  const auto ends = load_three([](std::uint32_t rank, EngineConfig& config) {
    if (rank == 1) config.slots = 3;
  });
  BOOST_TEST(ends[0].report ==
             "rank 1 has 3 slots and 512 rows a step, rank 0 has 2 and 512: give every rank the "
             "same");
  BOOST_TEST(ends[1].report.starts_with("rank 0 has 2 slots"), ends[1].report);
}

BOOST_AUTO_TEST_CASE(a_rank_that_cannot_load_lets_the_others_go) {
  const auto ends = load_three([](std::uint32_t rank, EngineConfig& config) {
    if (rank == 2) config.model = "/nowhere/model.gguf";
  });
  BOOST_TEST(ends[2].report.find("/nowhere/model.gguf") != std::string::npos, ends[2].report);
  const std::string both = ends[0].report + ends[1].report;
  BOOST_TEST(both.find("all_gather: rank 2 is gone") != std::string::npos, both);
}

BOOST_AUTO_TEST_CASE(a_count_that_does_not_fit_is_refused_before_anything_is_loaded) {
  const auto ends = run_ranks(2, [](const auto& group) {
    const auto loaded = load(smollm2(), group);
    return loaded ? std::string("loaded") : loaded.error().message;
  });
  for (const RankEnd& end : ends) {
    BOOST_TEST(end.report.find("2 ranks cannot share this model: 9 heads over 3 key heads cannot "
                               "be shared evenly; use 1, 3, 9") != std::string::npos,
               end.report);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::actors
