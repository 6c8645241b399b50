#include "bench/collectives/gpus.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "kernels/sum_probe.hpp"

namespace sluice::bench {
namespace {

/// Two processes that share a device hang rather than fail where they cannot run together.
constexpr unsigned shared_seconds_max = 120;

/// NCCL compares hosts and devices, and from 2.30 on asks whether sharing is meant. Between hosts
/// that differ, sockets are what this machine has. What the user has set stays.
void let_nccl_share(std::uint32_t rank) {
  const std::string host = fmt::format("sluice-rank-{}", rank);
  for (const auto& [name, value] : {std::pair{"NCCL_HOSTID", host.c_str()},
                                    {"NCCL_MULTI_RANK_GPU_ENABLE", "1"},
                                    {"NCCL_NET", "Socket"},
                                    {"NCCL_SOCKET_IFNAME", "lo"},
                                    {"NCCL_IB_DISABLE", "1"},
                                    {"NCCL_MNNVL_ENABLE", "0"},
                                    {"NCCL_NVLS_ENABLE", "0"},
                                    {"NCCL_MAX_CTAS", "2"}}) {
    ::setenv(name, value, 0);
  }
}

}  // namespace

bool measure_gpu_sums(const GpuSums& options, const std::shared_ptr<kernels::Communicator>& group) {
  const kernels::Shard shard = group->shard();
  kernels::SumProbe probe;
  for (const std::uint32_t width : options.widths) {
    for (const std::uint32_t rows : options.rows) probe.shapes.push_back({rows, width});
  }
  probe.device = options.device + (options.share_device ? 0 : shard.rank);
  probe.share_device = options.share_device;
  if (options.share_device) {
    let_nccl_share(shard.rank);
    ::alarm(shared_seconds_max);
  }
  const auto report = kernels::time_sums(probe, group);
  if (!report) {
    const std::string& why = report.error().message;
    const bool refused = options.share_device && why.find("NCCL says: ") != std::string::npos;
    if (shard.rank == 0 && refused && options.json) {
      fmt::print("{}\n", nlohmann::ordered_json{{"ranks", shard.size}, {"refused", why}}.dump());
    } else if (shard.rank == 0 && refused) {
      fmt::print("NCCL does not serve ranks that share a device: {}\n", why);
    } else if (shard.rank == 0 || report.error().code != ErrorCode::unsupported) {
      fmt::print(stderr, "sluice-bench-collectives: {}: {}\n", to_string(report.error().code), why);
    }
    std::fflush(stdout);
    return refused;
  }
  if (shard.rank != 0) return true;
  if (!options.json) {
    fmt::print("{}{}\nranks  rows  width  fused us  apart us  library us\n", report->collectives,
               report->graphs ? ", in graphs" : "");
  }
  for (const kernels::SumTimes& times : report->times) {
    if (options.json) {
      const nlohmann::ordered_json row{{"ranks", shard.size},
                                       {"rows", times.shape.rows},
                                       {"width", times.shape.width},
                                       {"fused_us", times.fused_us},
                                       {"apart_us", times.apart_us},
                                       {"library_us", times.library_us},
                                       {"collectives", report->collectives},
                                       {"graphs", report->graphs}};
      fmt::print("{}\n", row.dump());
    } else {
      fmt::print("{:5} {:5} {:6} {:9.2f} {:9.2f} {:11.2f}\n", shard.size, times.shape.rows,
                 times.shape.width, times.fused_us, times.apart_us, times.library_us);
    }
  }
  std::fflush(stdout);
  return true;
}

}  // namespace sluice::bench
