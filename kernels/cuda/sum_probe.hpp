#pragma once
// What sums over ranks take: the ways that a decode step can add up and norm its residual.

#include <memory>
#include <string>

#include "kernels/backends.hpp"
#include "kernels/communicator.hpp"

namespace sluice::kernels::cuda {

/// As kernels/backends.hpp says; `nccl` is NCCL's file, or empty.
Result<SumReport> time_sums(const SumProbe& probe, std::shared_ptr<Communicator> group,
                            const std::string& nccl);

}  // namespace sluice::kernels::cuda
