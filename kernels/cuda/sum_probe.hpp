#pragma once
// The measuring behind kernels/sum_probe.hpp.

#include <memory>
#include <string>

#include "kernels/sum_probe.hpp"

namespace sluice::kernels::cuda {

/// As kernels/sum_probe.hpp says; `nccl` is NCCL's file, or empty.
Result<SumReport> time_sums(const SumProbe& probe, std::shared_ptr<Communicator> group,
                            const std::string& nccl);

}  // namespace sluice::kernels::cuda
