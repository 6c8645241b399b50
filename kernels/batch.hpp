#pragma once
// The ragged batch: what one step computes. The scheduler's plan and the backend's metadata are
// this one plain struct (design section 6.2). A plan carries only what changed.

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::kernels {

/// How a sequence's next token is chosen. The order of effects: logit bias, repetition penalty,
/// presence and frequency penalty, banned stop tokens, temperature, then the thresholds min-p,
/// top-k and top-p over what remains, then Gumbel-max (design section 6.5).
struct SamplingParams {
  float temperature = 1.0F;         ///< 0: greedy, the lowest id among equal logits
  std::uint32_t top_k = 0;          ///< 0: off. Ties with the k-th value stay in
  float top_p = 1.0F;               ///< (0, 1]
  float min_p = 0.0F;               ///< [0, 1]: keep p >= min_p * p_max
  float repetition_penalty = 1.0F;  ///< > 0; over prompt and output, as vLLM and transformers do
  float presence_penalty = 0.0F;    ///< over output only, as OpenAI does
  float frequency_penalty = 0.0F;   ///< over output only
  std::vector<std::pair<Token, float>> logit_bias;  ///< sorted by token, each at most once
  std::uint64_t seed = 0;
  std::uint32_t min_tokens = 0;     ///< `stop_tokens` cannot be drawn before this many
  std::vector<Token> stop_tokens;   ///< ids that end the sequence, end-of-text included
  std::int32_t logprobs = -1;       ///< -1: none; k: the token's own and the k best, before
                                    ///< temperature, after penalties

  bool operator==(const SamplingParams&) const = default;
};

using SlotIndex = std::uint32_t;

/// Names a slot's current tenant: results that carry an older generation are dropped.
struct SlotRef {
  SlotIndex slot = 0;
  std::uint32_t generation = 0;

  bool operator==(const SlotRef&) const = default;
};

/// Puts a sequence into a free slot, before this batch's segments run.
struct SlotOpen {
  SlotRef slot;
  std::vector<Token> tokens;        ///< prompt, then tokens generated earlier (resume, preemption)
  std::uint32_t prompt_tokens = 0;  ///< how many of `tokens` are prompt
  SamplingParams sampling;
};

/// Entries of a slot's block table: logical block `first_block + i` lies in pool block `blocks[i]`.
struct BlockGrant {
  SlotIndex slot = 0;
  std::uint32_t first_block = 0;
  std::vector<std::uint32_t> blocks;
};

/// Which arithmetic a position takes (design section 6.6); equal to the bit on a CPU.
enum class Path : std::uint8_t { prompt, decode };

/// Consecutive positions of one sequence. The input of position p is the slot's token p, which an
/// earlier step's sampler may still be about to write (design section 6.3).
struct Segment {
  SlotRef slot;
  std::uint32_t position = 0;  ///< first position computed
  std::uint32_t rows = 0;      ///< >= 1
  Path path = Path::prompt;
  bool sample = false;         ///< the last row yields logits and, unless held back, a token
};

struct Batch {
  std::vector<SlotOpen> opens;
  std::vector<BlockGrant> grants;
  std::vector<Segment> segments;   ///< at most one a slot
  std::vector<SlotRef> closes;     ///< freed after this batch's segments ran
  bool sample_now = true;          ///< else logits wait in their slots for Backend::sample
};

/// Which tokens a held-back row may draw: bit t of word t/64; empty: any. One entry a slot.
struct Mask {
  SlotRef slot;
  std::vector<std::uint64_t> allowed;
};

/// A step's name; strictly increasing per backend.
using Ticket = std::uint64_t;

struct TokenLogprob {
  Token token = 0;
  float logprob = 0.0F;  ///< natural logarithm
};

/// What one sampled segment yielded.
struct SlotTokens {
  SlotRef slot;
  std::vector<Token> tokens;  ///< 0..k new tokens, so that speculation fits later
  /// Per new token, if asked: its own logprob first, then the best, highest first.
  std::vector<std::vector<TokenLogprob>> logprobs;
  /// Instead of a token: every logit is NaN or no token is allowed (`internal`). The slot then
  /// yields nothing more; rows already planned for it run and report the same error.
  std::optional<Error> error;
};

struct StepResult {
  Ticket ticket = 0;
  std::vector<SlotTokens> slots;
  std::uint64_t device_ns = 0;  ///< time the device was busy with this step
  Error error;                  ///< meaningful when `failed`
  bool failed = false;
};

}  // namespace sluice::kernels
