#pragma once
// From a client's submit to an engine's request: every check that needs the model. Pure.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/node.hpp"
#include "engine/scheduler.hpp"
#include "engine/step.hpp"
#include "kernels/core.hpp"
#include "model/chat_template.hpp"
#include "model/tokenizer.hpp"
#include "transport/node_protocol.hpp"
#include "transport/protocol.hpp"
#include "transport/session.hpp"

namespace sluice::actors {

/// What stays the same about a loaded engine for as long as it serves. Shared, never changed.
struct EngineFacts {
  std::string name;
  std::string numerics;  ///< numerics id, hex (design section 6.10)
  std::string backend;
  SiteConfig site;
  std::shared_ptr<const model::Tokenizer> tokenizer;
  std::optional<model::ChatTemplate> chat;  ///< none: `chat_refusal` says why
  Error chat_refusal;
  engine::SchedulerConfig scheduler;
  std::uint32_t vocabulary = 0;  ///< rows of the embedding; no fewer than the tokenizer's tokens
};

using EngineFactsPtr = std::shared_ptr<const EngineFacts>;

using transport::ResumedChoice;

/// A request on its way into a batcher.
struct Admission {
  transport::Peer owner;
  EngineFactsPtr engine;
  transport::StreamId stream{};
  engine::Request request;             ///< of its first choice; its id is the batcher's to give
  std::vector<ResumedChoice> choices;  ///< one each; the further ones differ from `request` in them
  transport::Accepted accepted;        ///< what the owner is told if the batcher takes it
  engine::Nanoseconds received = 0;    ///< when it was taken up
};

/// The request of a choice: it goes on after its own tokens, and draws with the seed plus its
/// number.
engine::Request choice_request(const engine::Request& request,
                               const std::vector<ResumedChoice>& choices, std::uint32_t choice);

/// Tokenizes and checks. `bad_request`, `too_long`, `not_exact`, or `unsupported` for what this
/// engine does not offer (chat without a template).
Result<Admission> admit(EngineFactsPtr engine, transport::Peer owner,
                        const transport::Submit& submit, engine::Nanoseconds now);

/// What a client learns of an engine in `welcome`.
transport::ModelInfo describe(const EngineFacts& engine);

/// The receipt of a finished sequence.
transport::Receipt make_receipt(const EngineFacts& engine, const engine::SequenceTiming& timing);

/// The receipt of a stream from those of its choices, the first one's first: the prompt counts
/// once, tokens and device time add up, the longest decoding is the stream's.
transport::Receipt join_receipts(const std::vector<transport::Receipt>& choices);

}  // namespace sluice::actors
