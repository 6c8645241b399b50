// What measures sums over ranks measures sums: it compares their bits first, over a pretended NCCL,
// over host memory, and where ranks share a device; and it says which of its ways there are.

#include "kernels/cuda/sum_probe.hpp"

#include <boost/test/unit_test.hpp>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/kernels/device_ranks.hpp"
#include "tests/kernels/rank_data.hpp"
#include "tests/kernels/ranks.hpp"

namespace sluice::kernels::test {
namespace {

SumProbe probe_of(std::vector<SumShape> shapes = {{1, 64}, {3, 100}}) {
  SumProbe probe;
  probe.shapes = std::move(shapes);
  probe.first_graph_ms = patient_graph_ms;
  return probe;
}

std::string found(const Result<SumReport>& report) {
  if (!report) {
    return fmt::format("{}: {}", to_string(report.error().code), report.error().message);
  }
  std::string text = report->collectives + (report->graphs ? ", graphs:" : ":");
  for (const SumTimes& times : report->times) {
    text += fmt::format(" {}x{}", times.shape.rows, times.shape.width);
    text += times.fused_us > 0 && times.apart_us > 0 ? " in order" : " not in order";
    if (times.library_us > 0) text += ", its own";
  }
  return text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(sum_probe)

BOOST_AUTO_TEST_CASE(ways_are_timed_where_there_are_any) {
  check_all(run_ranks(1, [](const auto& group) {
              return found(cuda::time_sums(probe_of(), group, pretended("")));
            }),
            "NCCL 2.28.9, 1 rank, graphs: 1x64 in order, its own 3x100 in order, its own");
  check_all(run_ranks(3, [](const auto& group) {
              return found(cuda::time_sums(probe_of(), group, pretended("_old")));
            }),
            "NCCL 2.14.3, 3 ranks, without graphs: 1x64 in order, its own 3x100 in order, its own");
  check_all(run_ranks(2, [](const auto& group) {
              return found(cuda::time_sums(probe_of(), group, ""));
            }),
            "tcp, 2 ranks, through host memory (NCCL is switched off): 1x64 in order 3x100 in "
            "order");
}

BOOST_AUTO_TEST_CASE(wrong_sums_are_not_timed) {
  check_all(run_ranks(2, [](const auto& group) {
              return found(cuda::time_sums(probe_of(), group, pretended("_wrong")));
            }),
            "internal: the sum of 1 rows of 64 is wrong: see that the GPUs and NCCL are sound");
}

BOOST_AUTO_TEST_CASE(ranks_may_share_a_device_if_nccl_lets_them) {
  // Two ranks of one process, and so of one pretended device.
  const auto share = [](const std::string& nccl) {
    const auto ends = run_ranks(1, [&](const auto&) -> std::string {
      std::vector<std::unique_ptr<GroupStart>> starts;
      Addresses addresses;
      for (const std::uint32_t rank : {0U, 1U}) {
        starts.push_back(require(prepare_tcp({rank, 2}, patient)));
        addresses.push_back(starts.back()->address());
      }
      std::vector<std::string> reports(2);
      std::vector<std::thread> ranks;
      for (const std::uint32_t rank : {0U, 1U}) {
        ranks.emplace_back([&, rank] {
          const auto group = starts[rank]->connect(addresses, 60'000);
          // One shape: freeing memory waits for the other rank's stream too.
          SumProbe probe = probe_of({{3, 100}});
          probe.share_device = true;
          reports[rank] = found(cuda::time_sums(probe, *group, nccl));
        });
      }
      for (std::thread& rank : ranks) rank.join();
      return reports[0] + "\n" + reports[1];
    });
    return ends.front().report;
  };
  const std::string each = "NCCL 2.28.9, 2 ranks, graphs: 3x100 in order, its own";
  BOOST_TEST(share(pretended("")) == each + "\n" + each);
  BOOST_TEST(share(pretended("_broken")).find("NCCL says: ") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
