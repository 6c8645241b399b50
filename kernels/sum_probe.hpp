#pragma once
// What sums over ranks take on GPUs: the ways that a decode step can add up and norm its residual,
// for a bench to print.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backends.hpp"
#include "kernels/communicator.hpp"

namespace sluice::kernels {

/// Rows of activations that ranks add up and norm, as every half of a layer does in a decode step.
struct SumShape {
  std::uint32_t rows = 1;
  std::uint32_t width = 4096;
};

struct SumProbe {
  std::vector<SumShape> shapes;
  std::uint32_t device = 0;              ///< this rank's
  bool share_device = false;             ///< the ranks have one together, as no service has it
  std::uint32_t start_ms = 60'000;       ///< longest that the devices' group may take to start
  std::uint32_t first_graph_ms = 5'000;  ///< and its first graph, before it goes on without
};

/// Microseconds of a sum and its norm, on the device: the median over graphs of many, or over
/// launches where the group has no graphs.
struct SumTimes {
  SumShape shape;
  double fused_us = 0;    ///< gathered, then added up in rank order and normed by one kernel
  double apart_us = 0;    ///< the sum in rank order, then the norm
  double library_us = 0;  ///< the library's own sum, in any order, then the norm; 0: it has none
};

struct SumReport {
  std::string collectives;  ///< what carries them: "NCCL 2.28.9, 2 ranks"
  bool graphs = false;
  std::vector<SumTimes> times;
};

/// Measures sums over the ranks of a group on their GPUs, after it has checked their bits. Every
/// rank calls it with the same shapes. `unsupported` without a GPU, `internal` for wrong sums and
/// with NCCL's own words.
Result<SumReport> time_sums(const SumProbe& probe, std::shared_ptr<Communicator> group,
                            const BackendSearch& search = {});

}  // namespace sluice::kernels
