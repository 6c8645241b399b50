#pragma once
// What a load run asks and when: made from a seed, so that a run can be repeated. Pure but for
// reading a file.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core.hpp"
#include "transport/protocol.hpp"

namespace sluice::bench {

/// When each request is due, in ns after the start: gaps of a gamma distribution with shape
/// `burstiness` (1: a Poisson process; below: burstier; above: more even), stretched so that the
/// last is due at count / rate, as vllm does. Rate 0: all at once.
std::vector<std::uint64_t> due_times_ns(std::size_t count, double rate_per_s, double burstiness,
                                        std::uint64_t seed);

struct RandomPrompts {
  std::uint32_t vocabulary = 0;
  std::uint32_t input_tokens = 1024;
  std::uint32_t prefix_tokens = 0;  ///< before these, the same in every prompt
};

/// Prompts of random token ids.
std::vector<transport::Prompt> random_prompts(std::size_t count, const RandomPrompts& options,
                                              std::uint64_t seed);

/// The prompts of a data set's text: ShareGPT's JSON (an array of objects whose `conversations`
/// begin with what a person said), JSON Lines with `prompt`, or a prompt a line. `bad_file` says
/// what was expected and where; `source` names it.
Result<std::vector<transport::Prompt>> parse_dataset(std::string_view text,
                                                     const std::string& source);

/// `io` when it cannot be read.
Result<std::vector<transport::Prompt>> read_dataset(const std::string& path);

/// `count` of these, shuffled by the seed; each again only when all were used as often.
std::vector<transport::Prompt> pick_prompts(const std::vector<transport::Prompt>& from,
                                            std::size_t count, std::uint64_t seed);

}  // namespace sluice::bench
