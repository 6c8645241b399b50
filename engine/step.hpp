#pragma once
// What passes between the scheduler and the rest: requests in, plans and events out. Plain data.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/batch.hpp"
#include "kernels/core.hpp"

namespace sluice::engine {

using kernels::SamplingParams;
using kernels::StepResult;
using kernels::Ticket;
using kernels::TokenLogprob;

/// Names a sequence inside one engine, never used twice.
using SequenceId = std::uint64_t;

/// Nanoseconds of a steady clock; the engine never reads one itself (design section 6.11).
using Nanoseconds = std::uint64_t;

/// What a sequence's whole text must be: a text that the pattern matches, or a JSON document that
/// fits the schema.
struct Constraint {
  enum class Kind : std::uint8_t { none, regex, json_schema };
  Kind kind = Kind::none;
  std::string text;  ///< the pattern; or the schema, as JSON

  explicit operator bool() const { return kind != Kind::none; }
  bool operator==(const Constraint&) const = default;
};

/// One generation, as the engine sees it: already tokenized and validated.
struct Request {
  SequenceId id = 0;
  std::vector<Token> prompt;
  std::vector<Token> resumed;      ///< tokens already generated elsewhere: continue after them
  SamplingParams sampling;         ///< `stop_tokens` is empty when end tokens are ignored
  std::uint32_t max_tokens = 0;    ///< new tokens, resumed ones counted; 0: to the context's end
  std::vector<std::string> stops;  ///< UTF-8 strings that end the text; they are not part of it
  Constraint constraint;           ///< of the text; where nothing may follow, it ends with `stop`
  /// The output continues the prompt's text, so that a leading space is part of it. False for an
  /// answer in a chat, where it is a vocabulary's dummy prefix (Tokenizer::drops_leading_space).
  bool continues_text = false;
  std::int32_t priority = 0;       ///< higher first
  std::string tenant;              ///< among equals each gets the same share of tokens
  std::optional<Nanoseconds> deadline;
};

enum class FinishReason : std::uint8_t { none, stop, length, cancelled, error };

/// Whether token number `index` of an output is the stop token that ends it. Such a token is the
/// last of the sequence's `tokens` (the chain covers it, usage counts it) and adds no text.
inline bool ends_sequence(std::span<const Token> stop_tokens, std::uint32_t min_tokens,
                          std::uint32_t index, Token token) {
  return index >= min_tokens && std::ranges::find(stop_tokens, token) != stop_tokens.end();
}

/// One planned step: run `batch`, answer with the ticket. Tickets count up from 1. A batch may have
/// no segments: it only closes slots, and is answered like any other.
struct StepPlan {
  Ticket ticket = 0;
  kernels::Batch batch;
};

/// The second half of a step whose plan does not sample now: the tokens its rows may draw.
struct StepMasks {
  Ticket ticket = 0;
  std::vector<kernels::Mask> masks;
};

/// What one sequence gained by a step, in order: the scheduler alone decides a finish.
struct SequenceEvent {
  SequenceId id = 0;
  std::uint32_t first_index = 0;     ///< index of tokens[0] in the sequence's output
  std::vector<Token> tokens;
  std::vector<std::vector<TokenLogprob>> logprobs;  ///< a list a token, or empty
  FinishReason finish = FinishReason::none;
  /// With `stop` by a stop string: bytes of text before it. The text ends there. `tokens` holds all
  /// of the token that completed it.
  std::optional<std::uint64_t> text_bytes;
  Error error;                       ///< with FinishReason::error or cancelled
};

/// Where a finished sequence's time went; part of the receipt.
struct SequenceTiming {
  Nanoseconds submitted = 0;
  Nanoseconds started = 0;      ///< first planned
  Nanoseconds first_token = 0;
  Nanoseconds finished = 0;
  std::uint64_t device_ns = 0;  ///< its share of the steps it was in, by rows
  std::uint32_t prompt_tokens = 0;
  std::uint32_t cached_tokens = 0;
  std::uint32_t completion_tokens = 0;  ///< of the whole output: resumed ones and a stop token too
};

struct FinishedSequence {
  SequenceId id = 0;
  SequenceTiming timing;
};

}  // namespace sluice::engine
