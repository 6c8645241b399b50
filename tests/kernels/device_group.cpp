// Ranks whose devices speak to each other: real processes, each with a pretended device, and
// between them host memory or a pretended NCCL. Both give the bits of a sum in rank order, a model
// whose vocabulary is cut over ranks draws what one device draws, and what goes wrong (ranks that
// die, never start, or cannot have NCCL) ends in a typed error or in the other way, not in a wait.

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/backend.hpp"
#include "kernels/cuda/device.hpp"
#include "kernels/cuda/group.hpp"
#include "tests/kernels/device_ranks.hpp"
#include "tests/kernels/rank_data.hpp"
#include "tests/kernels/ranks.hpp"

using namespace sluice;
using namespace sluice::kernels;
using namespace sluice::kernels::test;

namespace {

using cuda::DeviceGroup;
using cuda::DeviceMemory;
using cuda::piece_floats;

/// NCCL, or none.
std::vector<std::string> libraries() { return {pretended(""), ""}; }

Result<std::unique_ptr<DeviceGroup>> group_of(std::shared_ptr<Communicator> group,
                                              const std::string& library,
                                              std::uint32_t start_ms = 60'000) {
  return cuda::make_device_group(
      std::move(group),
      {.library = library, .first_graph_ms = patient_graph_ms, .start_ms = start_ms});
}

DeviceMemory memory_of(std::size_t floats) {
  return require(DeviceMemory::make(floats * sizeof(float), "a test"));
}

/// Whole fours around where sums are cut.
const std::vector<std::size_t> sums = {4, 576, 100'000, piece_floats, piece_floats + 4};

std::string check_sums_and_gathers(DeviceGroup& group, const Shard& shard) {
  const auto stream = require(cuda::make_stream());
  for (const std::size_t count : sums) {
    const DeviceMemory memory = memory_of(count);
    std::vector<float> values = values_of(shard.rank, count);
    cudaMemcpyAsync(memory.as<float>(), values.data(), count * sizeof(float),
                    cudaMemcpyHostToDevice, stream.get());
    cuda::LaunchChain chain(stream.get(), true);
    if (auto done = group.all_reduce(memory.as<float>(), count, chain); !done) {
      return said(done);
    }
    cudaMemcpyAsync(values.data(), memory.as<float>(), count * sizeof(float),
                    cudaMemcpyDeviceToHost, stream.get());
    cudaStreamSynchronize(stream.get());
    if (group.failure()) return group.failure()->message;
    if (!same_bits(values, sum_in(ranks_in_order(shard.size), count))) {
      return fmt::format("the sum of {} floats differs", count);
    }
  }
  for (const std::size_t count : {std::size_t{1}, std::size_t{333}, piece_floats}) {
    const DeviceMemory own = memory_of(count), all = memory_of(shard.size * count);
    const std::vector<float> mine = values_of(shard.rank, count);
    cudaMemcpyAsync(own.as<float>(), mine.data(), count * sizeof(float), cudaMemcpyHostToDevice,
                    stream.get());
    if (auto done = group.all_gather(own.as<float>(), all.as<float>(), count, stream.get());
        !done) {
      return said(done);
    }
    std::vector<float> values(count);
    for (std::uint32_t rank = 0; rank < shard.size; ++rank) {
      cudaMemcpyAsync(values.data(), all.as<float>() + rank * count, count * sizeof(float),
                      cudaMemcpyDeviceToHost, stream.get());
      cudaStreamSynchronize(stream.get());
      if (!same_bits(values, values_of(rank, count))) {
        return fmt::format("rank {}'s part of {} differs", rank, count);
      }
    }
  }
  return "ok";
}

}  // namespace

BOOST_AUTO_TEST_SUITE(device_group)

BOOST_AUTO_TEST_CASE(sums_are_taken_in_rank_order_on_any_way) {
  for (const std::string& library : libraries()) {
    for (const std::uint32_t size : {1U, 3U}) {
      BOOST_TEST_CONTEXT(size << " ranks, NCCL: " << library) {
        check_ok(run_ranks(size, [&](const auto& communicator) -> std::string {
          const Shard shard = communicator->shard();
          const auto group = group_of(communicator, library);
          if (!group) return group.error().message;
          const std::string due =
              library.empty() ? fmt::format("{}, through host memory (NCCL is switched off)",
                                            communicator->name())
                              : fmt::format("NCCL 2.28.9, {} rank{}", size, size == 1 ? "" : "s");
          if ((*group)->name() != due) return (*group)->name();
          return check_sums_and_gathers(**group, shard);
        }));
      }
    }
  }
}

// NCCL ends what it began on a thread of its own when it is asked for its state: by one at a time.
BOOST_AUTO_TEST_CASE(who_looks_after_a_group_does_not_disturb_its_calls) {
  check_ok(run_ranks(2, [](const auto& communicator) -> std::string {
    const auto group = group_of(communicator, pretended(""));
    if (!group) return group.error().message;
    std::atomic<bool> done{false};
    std::thread looker([&] {
      while (!done) (void)(*group)->failure();
    });
    const std::string found = check_sums_and_gathers(**group, communicator->shard());
    done = true;
    looker.join();
    return found;
  }));
}

BOOST_AUTO_TEST_CASE(a_vocabulary_cut_over_ranks_draws_what_one_device_draws) {
  // In a process of its own: pretended streams are threads, and the ranks are forked.
  const auto alone = run_ranks(1, [](const auto&) -> std::string {
    const TinyModel model = tiny_model({.vocabulary = 301});
    return fmt::format("{}", fmt::join(Rank(model, "", nullptr).draw(12), " "));
  });
  BOOST_REQUIRE(!alone.front().report.empty());
  for (const std::string& library : libraries()) {
    for (const std::uint32_t size : {2U, 3U}) {
      const auto ends = run_ranks(size, [&](const auto& group) -> std::string {
        const TinyModel model = cut(group->shard());
        Rank rank(model, library, group);
        const auto tokens = rank.draw(12);
        return tokens.empty() ? rank.failure.message : fmt::format("{}", fmt::join(tokens, " "));
      });
      for (const RankEnd& end : ends) BOOST_TEST(end.report == alone.front().report);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_sum_and_the_norm_behind_it_are_one_launch) {
  // Over host memory the sum takes none, so that as many over NCCL leave the sum none of its own.
  std::vector<std::string> reports;
  for (const std::string& library : libraries()) {
    const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
      const TinyModel model = cut(group->shard());
      const auto& ops = model.program.ops;
      const auto* sum = std::get_if<AllReduce>(&ops.at(1));
      const auto* norm = std::get_if<Norm>(&ops.at(2));
      if (!sum || !norm || norm->in.index != sum->values.index) return "no sum before a norm";
      Rank rank(model, library, group);
      const std::uint64_t before = cuda_host::calls("cudaLaunchKernel");
      if (rank.draw(1).empty()) return rank.failure.message;
      std::vector<float> normed(20 * model.traits.hidden);
      if (!rank.backend->read(rank.program, norm->out, normed)) return "nothing read";
      return fmt::format("{} launches; {}", cuda_host::calls("cudaLaunchKernel") - before,
                         fmt::join(normed, " "));
    });
    for (const RankEnd& end : ends) reports.push_back(end.report);
  }
  BOOST_TEST(reports.front().find(" launches; ") != std::string::npos, reports.front());
  for (const std::string& report : reports) BOOST_TEST(report == reports.front());
}

BOOST_AUTO_TEST_CASE(a_rank_that_dies_ends_the_others_steps) {
  for (const std::string& library : libraries()) {
    const auto ends = run_ranks(2, [&](const auto& group) -> std::string {
      const TinyModel model = cut(group->shard());
      Rank rank(model, library, group);
      if (rank.draw(3).empty()) return "a sound group failed";
      if (group->shard().rank == 1) return "left";  // ends the process
      // NCCL waits for the rank on the device. Whoever looks after the ranks tells the group.
      std::thread teller;
      if (!library.empty()) teller = std::thread([&] { group->abort("rank 1's process ended"); });
      const bool drawn = !rank.draw(3, 1).empty();
      if (teller.joinable()) teller.join();
      if (drawn) return "drew without rank 1";
      if (rank.failure.code != ErrorCode::unavailable) return rank.failure.message;
      // Every step after it fails too, until there is another group.
      const Error first = rank.failure;
      if (!rank.draw(1, 2).empty() || rank.failure.message != first.message) return "went on";
      return "ok: " + first.message;
    });
    BOOST_TEST(ends[0].report.starts_with("ok: rank 0 of 2: "),
               ends[0].report << " (signal " << ends[0].signal << ")");
    BOOST_TEST(ends[1].report == "left");
  }
}

BOOST_AUTO_TEST_CASE(ranks_go_on_in_another_group) {
  for (const std::string& library : libraries()) {
    check_ok(run_ranks(2, [&](const auto& group) -> std::string {
      const auto next = another_group(group);
      const TinyModel model = cut(group->shard());
      Rank rank(model, library, group);
      const auto due = rank.draw(8);
      if (due.empty()) return rank.failure.message;
      group->abort("the test breaks the group");
      if (!rank.draw(1, 1).empty()) return "a step ran without its group";
      rank.join(next);
      return rank.draw(8, 0) == due ? "ok" : "other tokens than before: " + rank.failure.message;
    }));
  }
}

BOOST_AUTO_TEST_CASE(a_start_that_does_not_end_says_so) {
  const auto stuck = run_ranks(2, [](const auto& communicator) -> std::string {
    const auto group = group_of(communicator, pretended("_stuck"), 50);
    if (group) return "started";
    const bool aborted = communicator->failure().has_value();
    return fmt::format("{}{}: {}", to_string(group.error().code), aborted ? ", aborted" : "",
                       group.error().message);
  });
  // The one that notices first tells the other.
  const std::string late =
      "deadline, aborted: rank 0 of 2: ncclCommInitRankConfig did not end in "
      "time: see that every rank's host can be reached, and set "
      "NCCL_DEBUG=INFO to see how far it comes";
  for (const RankEnd& end : stuck) {
    BOOST_TEST((end.report.find("did not end in time") != std::string::npos ||
                end.report.starts_with("unavailable, aborted: ")),
               end.report);
  }
  const auto broken = run_ranks(1, [](const auto& communicator) -> std::string {
    const auto group = group_of(communicator, pretended("_broken"));
    return group ? "started"
                 : fmt::format("{}: {}", to_string(group.error().code), group.error().message);
  });
  BOOST_TEST(broken.front().report ==
             "internal: rank 0 of 1: ncclCommInitRankConfig: NCCL says: remote process exited or "
             "there was a network error (a pretended reason)");
}

BOOST_AUTO_TEST_CASE(ranks_without_nccl_go_through_host_memory) {
  const auto ends = run_ranks(2, [](const auto& communicator) -> std::string {
    const bool has = communicator->shard().rank == 0;
    const auto group = group_of(communicator, has ? pretended("") : "no-such-library.so");
    if (!group) return group.error().message;
    const std::string found = check_sums_and_gathers(**group, communicator->shard());
    return found == "ok" ? (*group)->name() : found;
  });
  BOOST_TEST(ends[0].report == "tcp, 2 ranks, through host memory (rank 1 has no NCCL)");
  BOOST_TEST(ends[1].report.starts_with("tcp, 2 ranks, through host memory (NCCL does not load: "),
             ends[1].report);
  const auto stranger = run_ranks(1, [](const auto& communicator) -> std::string {
    const auto group = group_of(communicator, tests::plugins_folder() + "/libdriver_ok.so");
    return group ? (*group)->name() : group.error().message;
  });
  BOOST_TEST(stranger.front().report.ends_with("libdriver_ok.so is no NCCL of version 2.14 or "
                                               "later)"),
             stranger.front().report);
}

BOOST_AUTO_TEST_CASE(ranks_that_share_a_device_go_through_host_memory) {
  // Two ranks of one process, and so of one pretended device.
  const auto ends = run_ranks(1, [](const auto&) -> std::string {
    std::vector<std::unique_ptr<GroupStart>> starts;
    Addresses addresses;
    for (const std::uint32_t rank : {0U, 1U}) {
      starts.push_back(require(prepare_tcp({rank, 2}, patient)));
      addresses.push_back(starts.back()->address());
    }
    const std::string nccl = pretended("");
    std::vector<std::string> names(2);
    std::vector<std::thread> ranks;
    for (const std::uint32_t rank : {0U, 1U}) {
      ranks.emplace_back([&, rank] {
        const auto communicator = starts[rank]->connect(addresses, 60'000);
        const auto group = group_of(*communicator, nccl);
        names[rank] = group ? (*group)->name() : group.error().message;
      });
    }
    for (std::thread& rank : ranks) rank.join();
    return names[0] == names[1] ? names[0] : names[0] + " and " + names[1];
  });
  BOOST_TEST(ends.front().report ==
             "tcp, 2 ranks, through host memory (ranks 0 and 1 share a device)");
}

BOOST_AUTO_TEST_SUITE_END()
