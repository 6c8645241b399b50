#pragma once
// What a request must be before a scheduler takes it.

#include "engine/step.hpp"
#include "kernels/core.hpp"

namespace sluice::engine {

/// Most alternatives a token's logprobs may list (OpenAI's limit).
inline constexpr std::int32_t logprobs_max = 20;

/// `bad_request` naming the first field that is out of range: an empty prompt, ids outside the
/// vocabulary, numbers that are not finite or beyond what SamplingParams allows, stop strings that
/// are empty or no UTF-8.
Result<void> check_request(const Request& request, std::uint32_t vocabulary);

/// What of it is SamplingParams' alone.
Result<void> check_sampling(const SamplingParams& sampling, std::uint32_t vocabulary);

}  // namespace sluice::engine
