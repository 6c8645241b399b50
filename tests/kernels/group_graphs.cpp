// Decode steps of a group as graphs, its collectives in them: real processes, each with a pretended
// device, over a pretended NCCL, which ends a process where the real one would hang. The same
// tokens and logits as kernel by kernel; all ranks have a graph or none has; graphs go before their
// group; and where capturing fails or does not end, the ranks go on without.

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "tests/kernels/cuda_host/cuda_runtime.h"
#include "tests/kernels/device_ranks.hpp"
#include "tests/kernels/rank_data.hpp"
#include "tests/kernels/ranks.hpp"

namespace sluice::kernels::test {
namespace {

/// Calls of a name in this rank's life: what it was forked from has counted too.
class Calls {
 public:
  explicit Calls(const char* name) : name_(name), before_(cuda_host::calls(name)) {}
  std::uint64_t count() const { return cuda_host::calls(name_) - before_; }

 private:
  const char* name_;
  std::uint64_t before_;
};

/// Tokens, and the bits of the last one's logits, as many as the device has; or why not.
std::string outcome(Rank& rank, std::uint32_t tokens, SlotIndex slot = 0) {
  const auto drawn = rank.draw(tokens, slot);
  if (drawn.empty()) return "failed: " + rank.failure.message;
  std::string text = fmt::format("{}:", fmt::join(drawn, " "));
  const auto& ops = rank.model.program.ops;
  const auto* gather = std::get_if<AllGather>(&ops[ops.size() - 2]);
  const Buffer own = gather != nullptr ? gather->in : rank.model.logits;
  for (const float logit : rank.read(own, 1)) text += fmt::format(" {:a}", logit);
  return text;
}

/// Of one device, kernel by kernel.
std::string due(std::uint32_t tokens) {
  static const TinyModel model = tiny_model({.vocabulary = 301});
  return run_ranks(1, [&](const auto&) -> std::string {
           Rank rank(model, "", nullptr, false);
           return outcome(rank, tokens);
         })
      .front()
      .report;
}

/// Every rank lived to its end, drew these tokens and had its part of these logits.
void check_parts(const std::vector<RankEnd>& ends, const std::string& whole) {
  std::vector<std::string> words{""};
  const std::size_t colon = whole.find(':');
  BOOST_REQUIRE(colon != std::string::npos);
  for (const char c : whole.substr(colon + 2)) {
    if (c == ' ') {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  const auto size = static_cast<std::uint32_t>(ends.size());
  const auto count = static_cast<std::uint32_t>(words.size());
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    const auto part = std::span(words).subspan(shard_begin(count, rank, size),
                                               shard_count(count, {rank, size}));
    BOOST_TEST(ends[rank].signal == 0);
    BOOST_TEST(ends[rank].report ==
               fmt::format("{}: {}", whole.substr(0, colon), fmt::join(part, " ")));
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(group_graphs)

BOOST_AUTO_TEST_CASE(graphs_with_collectives_change_no_bit) {
  const std::string alone = due(12);
  BOOST_REQUIRE(!alone.starts_with("failed"));
  for (const std::uint32_t size : {1U, 2U, 3U}) {
    for (const bool graphs : {false, true}) {
      BOOST_TEST_CONTEXT(size << " ranks, graphs: " << graphs) {
        const auto ends = run_ranks(size, [&](const auto& group) -> std::string {
          const Calls graphs_run("cudaGraphLaunch");
          const TinyModel model = cut(group->shard());
          Rank rank(model, pretended(""), group, graphs);
          const bool named = rank.backend->device().collectives.ends_with(", without graphs");
          if (named == graphs) return rank.backend->device().collectives;
          std::string found = outcome(rank, 12);
          const std::uint64_t run = graphs_run.count();
          if ((run > 8) != graphs) return fmt::format("{} graphs", run);
          return found;
        });
        check_parts(ends, alone);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(steps_of_several_rows_are_larger_in_a_graph_on_all_ranks) {
  // Five rows run in a graph of six: sums and gathers of padded sizes, in both forms.
  std::vector<std::string> reports;
  for (const bool graphs : {false, true}) {
    const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
      const Calls graphs_run("cudaGraphLaunch");
      const TinyModel model = cut(group->shard());
      PoolShape pool = model.pool();
      Rank rank(model, pretended(""), group, graphs);
      const std::uint32_t rows = std::min(5U, pool.slots);
      Batch prompts;
      for (SlotIndex slot = 0; slot < rows; ++slot) {
        SlotOpen open{{slot, 1}, {3 + slot, 90 - 7 * slot}, 2, {}};
        open.sampling.temperature = 0;
        prompts.opens.push_back(open);
        prompts.grants.push_back({slot, 0, {slot}});
        prompts.segments.push_back({{slot, 1}, 0, 2, Path::prompt, true});
      }
      std::string text;
      StepResult result = rank.run(std::move(prompts));
      for (std::uint32_t position = 2; position < 8; ++position) {
        if (result.failed) return "failed: " + result.error.message;
        for (const SlotTokens& slot : result.slots) text += fmt::format(" {}", slot.tokens.at(0));
        Batch next;
        for (SlotIndex slot = 0; slot < rows; ++slot) {
          next.segments.push_back({{slot, 1}, position, 1, Path::decode, true});
        }
        result = rank.run(std::move(next));
      }
      if ((graphs_run.count() >= 4) != graphs) return fmt::format("{} graphs", graphs_run.count());
      return text;
    });
    for (const RankEnd& end : ends) reports.push_back(end.report);
  }
  for (const std::string& report : reports) BOOST_TEST(report == reports.front());
  BOOST_TEST(reports.front().starts_with(" "), reports.front());
}

BOOST_AUTO_TEST_CASE(graphs_go_before_their_group_and_come_again_in_the_next) {
  for (const bool broken : {false, true}) {
    BOOST_TEST_CONTEXT("the first group " << (broken ? "breaks" : "is left")) {
      const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
        const Calls graphs_run("cudaGraphLaunch");
        const auto next = another_group(group);
        const TinyModel model = cut(group->shard());
        Rank rank(model, pretended(""), group);
        const std::string first = outcome(rank, 8);
        if (first.starts_with("failed")) return first;
        const std::uint64_t launched = graphs_run.count();
        if (launched < 5) return "no graph";
        if (broken) {
          group->abort("the test breaks the group");
          if (!rank.draw(1, 1).empty()) return "a step ran without its group";
        }
        rank.join(next);
        if (outcome(rank, 8) != first) return "other tokens than before: " + rank.failure.message;
        return graphs_run.count() == 2 * launched ? "ok" : "other graphs than before";
      });
      check_all(ends, "ok");
    }
  }
}

BOOST_AUTO_TEST_CASE(a_rank_that_dies_ends_a_graph_that_runs) {
  const auto ends = run_ranks(2, [](const auto& group) -> std::string {
    const TinyModel model = cut(group->shard());
    Rank rank(model, pretended(""), group);
    const Calls graphs_run("cudaGraphLaunch");
    if (rank.draw(6).empty()) return "a sound group failed";
    if (group->shard().rank == 1) return "left";
    const std::uint64_t before = graphs_run.count();
    Batch next;
    next.segments.push_back({{0, 1}, 25, 1, Path::decode, true});
    rank.submit(std::move(next));
    if (graphs_run.count() != before + 1) return "the step is no graph";
    group->abort("rank 1's process ended");
    const StepResult result = rank.results.take();
    return result.failed ? std::string(to_string(result.error.code)) : "ran without rank 1";
  });
  BOOST_TEST(ends[0].signal == 0);
  BOOST_TEST(ends[0].report == "unavailable");
  BOOST_TEST(ends[1].report == "left");
}

BOOST_AUTO_TEST_CASE(a_capture_that_fails_on_one_rank_leaves_all_without) {
  const std::string alone = due(8);
  for (const char* call :
       {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"}) {
    BOOST_TEST_CONTEXT(call) {
      const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
        const auto next = another_group(group);
        const TinyModel model = cut(group->shard());
        Rank rank(model, pretended(""), group);
        const Calls graphs_run("cudaGraphLaunch");
        if (group->shard().rank == 1) cuda_host::fail_call(call, 1, cudaErrorInvalidValue);
        const std::string found = outcome(rank, 8);
        if (graphs_run.count() > 0) return "a graph was launched";
        rank.join(next);
        if (outcome(rank, 8) != found) return "other tokens than before: " + rank.failure.message;
        if (graphs_run.count() > 0) return "a graph was launched in the next group";
        return found;
      });
      check_parts(ends, alone);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_group_whose_first_capture_fails_starts_anew_without) {
  const std::string alone = due(8);
  for (const char* state : {"_capture_refused", "_capture_stuck"}) {
    BOOST_TEST_CONTEXT(state) {
      const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
        const Calls graphs_run("cudaGraphLaunch");
        const TinyModel model = cut(group->shard());
        Rank rank(model, pretended(state), group, true, 200);
        const std::string name = rank.backend->device().collectives;
        if (name != "NCCL 2.28.9, 2 ranks, without graphs") return name;
        const std::string found = outcome(rank, 8);
        return graphs_run.count() == 0 ? found : "a graph was launched";
      });
      check_parts(ends, alone);
    }
  }
}

BOOST_AUTO_TEST_CASE(what_nccl_refuses_to_capture_is_tried_once) {
  const std::string alone = due(8);
  const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
    const auto next = another_group(group);
    const TinyModel model = cut(group->shard());
    Rank rank(model, pretended("_later_capture_refused"), group);
    const std::string first = outcome(rank, 8);
    if (first.find("NCCL says: ") == std::string::npos) return "not refused: " + first;
    rank.join(next);
    return outcome(rank, 8);
  });
  check_parts(ends, alone);
}

BOOST_AUTO_TEST_CASE(a_capture_that_does_not_end_ends_with_its_group) {
  const std::string alone = due(8);
  const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
    const auto next = another_group(group);
    const TinyModel model = cut(group->shard());
    Rank rank(model, pretended("_later_capture_stuck"), group);
    const Calls captures("cudaStreamBeginCapture");
    std::atomic<bool> ended{false};
    std::thread watchdog([&] {
      while (captures.count() == 0 && !ended) std::this_thread::yield();
      group->abort("the step is late");
    });
    const std::string first = outcome(rank, 8);
    ended = true;
    watchdog.join();
    if (first.find("the step is late") == std::string::npos) return "not late: " + first;
    rank.join(next);
    return outcome(rank, 8);
  });
  check_parts(ends, alone);
}

BOOST_AUTO_TEST_CASE(ranks_capture_only_where_all_want_to_and_can) {
  const std::string alone = due(8);
  const auto found = [&](const char* state, bool last_wants) {
    return run_ranks(2, [&](const auto& group) -> std::string {
      const Calls graphs_run("cudaGraphLaunch");
      const TinyModel model = cut(group->shard());
      Rank rank(model, pretended(state), group, group->shard().rank == 0 || last_wants);
      const std::string name = rank.backend->device().collectives;
      if (!name.ends_with(", 2 ranks, without graphs")) return name;
      const std::string outcome_found = outcome(rank, 8);
      return graphs_run.count() == 0 ? outcome_found : "a graph was launched";
    });
  };
  check_parts(found("", false), alone);
  check_parts(found("_old", true), alone);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
