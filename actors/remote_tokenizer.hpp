#pragma once
// A tokenizer on another node: its proxy in the front's pool, its stub on the far node.

#include <map>
#include <set>

#include "actors/channels.hpp"
#include "actors/remote_executor.hpp"

namespace sluice::actors {

/// In the pool it is told which nodes offer tokenizers of which engine.
using TokenizerProxyActor = TokenizerActor::extend_with<ChannelEnd>::extend<
    caf::reacts_to<peer_atom, std::string, transport::LinkId>,  ///< engine name, session
    caf::reacts_to<tick_atom>>;

struct TokenizerProxyState {
  static inline const char* name = "tokenizer proxy";
  struct Waiting {
    transport::Peer owner;
    transport::Submit submit;
    engine::Nanoseconds received = 0;
    EngineFactsPtr engine;  ///< that its front chose, of several alike
  };
  /// Of one engine, and of those that a tokenizer cannot tell from it.
  struct Far {
    ChannelRef channel;
    bool open = false;
    EngineFactsPtr engine;
    std::map<transport::StreamId, Waiting> waiting;  ///< asked, not answered
  };
  PeerBoxPtr peers;
  AdmissionSink session;
  std::map<std::string, std::vector<transport::LinkId>> offers;
  std::map<std::string, Far> far;  ///< by what the tokenizer is told of the engine
};

/// What waits when a channel is lost goes to the next node that offers; when none does for a while
/// it is refused with `unavailable`.
TokenizerProxyActor::behavior_type tokenizer_proxy(
    TokenizerProxyActor::stateful_pointer<TokenizerProxyState> self, AdmissionSink session,
    PeerBoxPtr peers);

using TokenizerStubActor = ChannelEnd::extend_with<AdmissionSink>;

struct TokenizerStubState {
  static inline const char* name = "tokenizer stub";
  PeerBoxPtr peers;
  ChannelRef channel;
  TokenizerActor tokenizer;
  EngineFactsPtr engine;
};

/// Serves one channel with a tokenizer of its own.
TokenizerStubActor::behavior_type tokenizer_stub(
    TokenizerStubActor::stateful_pointer<TokenizerStubState> self, ChannelRef channel,
    FactsLoader load, PeerBoxPtr peers);

}  // namespace sluice::actors
