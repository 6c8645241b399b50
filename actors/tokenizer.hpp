#pragma once
// Text to ids, away from the session and the batcher: a long prompt delays no other message.

#include "actors/actors.hpp"

namespace sluice::actors {

/// Answers the session with an admission or a refusal.
TokenizerActor::behavior_type tokenizer(TokenizerActor::pointer self, AdmissionSink session);

}  // namespace sluice::actors
