#pragma once
// What a decoding step takes on each of several ranks.

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/batch.hpp"
#include "kernels/communicator.hpp"

namespace sluice::bench {

/// Decodes `steps` tokens of each of `rows` sequences, all in one batch, with one thread, each by
/// `sampling` with a seed of its own; gives the median step's time in microseconds. Every rank
/// calls it.
Result<double> measure_steps(const std::string& model,
                             const std::shared_ptr<kernels::Communicator>& group,
                             std::uint32_t rows, std::uint32_t steps,
                             const kernels::SamplingParams& sampling);

}  // namespace sluice::bench
