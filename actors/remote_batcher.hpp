#pragma once
// A batcher on another node: its proxy beside the front, its stub beside the batcher.

#include <map>

#include "actors/channels.hpp"
#include "actors/remote_executor.hpp"
#include "actors/stream_ledger.hpp"

namespace sluice::actors {

/// An admission as it travels. Clocks of two hosts have nothing to do with each other: its times
/// become ages, and times again.
transport::Admit to_wire(Admission&& admission, engine::Nanoseconds now);
Admission from_wire(transport::Admit&& admit, EngineFactsPtr engine, engine::Nanoseconds now);

using BatcherProxyActor = EngineActor::extend_with<ChannelEnd>;

struct BatcherProxyState {
  static inline const char* name = "batcher proxy";
  PeerBoxPtr peers;
  ChannelRef channel;
  EngineFactsPtr engine;  ///< once the channel is open
  FrontPtr front;         ///< of the node: who admitted last
  StreamLedger streams;
  std::map<std::uint64_t, caf::typed_response_promise<NamedValues>> questions;
  std::uint64_t last_question = 0;
};

/// Opens the channel, tells `news` when the engine serves or why it does not, and ends when the
/// channel is lost, or the engine says what cannot be. Every front of this node is the same one.
BatcherProxyActor::behavior_type batcher_proxy(
    BatcherProxyActor::stateful_pointer<BatcherProxyState> self, std::size_t engine,
    transport::LinkId link, transport::OpenChannel what, FactsLoader load, PeerBoxPtr peers,
    LoadNews news);

using BatcherStubActor = ChannelEnd::extend_with<FrontNews>::extend_with<StreamSink>;

struct BatcherStubState {
  static inline const char* name = "batcher stub";
  PeerBoxPtr peers;
  ChannelRef channel;
  EngineFactsPtr engine;
  EngineActor batcher;
  FrontPtr front;  ///< itself, as the batcher knows it
};

/// Serves one channel of a batcher that runs here: to the batcher it is a front.
BatcherStubActor::behavior_type batcher_stub(
    BatcherStubActor::stateful_pointer<BatcherStubState> self, ChannelRef channel,
    EngineFactsPtr engine, EngineActor batcher, PeerBoxPtr peers);

}  // namespace sluice::actors
