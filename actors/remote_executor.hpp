#pragma once
// An executor on another node: its proxy beside the batcher, its stub beside the device.

#include <functional>

#include "actors/channels.hpp"
#include "actors/executor.hpp"
#include "actors/rendezvous.hpp"

namespace sluice::actors {

/// What a node knows of an engine without loading its weights: name, tokenizer, chat format.
using FactsLoader = std::function<Result<std::shared_ptr<EngineFacts>>()>;

/// The reader's own facts completed by what the node that computes said. `unsupported` when the two
/// read different tokenizers.
Result<EngineFactsPtr> complete(std::shared_ptr<EngineFacts> facts,
                                const transport::ChannelOpened& opened);

/// What another node is told of an engine.
transport::ChannelOpened describe_channel(const EngineFacts& facts);

using ExecutorProxyActor = ExecutorActor::extend_with<ChannelEnd>;

struct ExecutorProxyState {
  static inline const char* name = "executor proxy";
  PeerBoxPtr peers;
  ChannelRef channel;
  ResultSink batcher;
};

/// Opens `what` on `link`, tells `news` when the far executor is ready or why it is not, and ends
/// when the channel is lost: to whoever monitors it that is an executor's end. Results go to
/// whoever sent the first plan.
ExecutorProxyActor::behavior_type executor_proxy(
    ExecutorProxyActor::stateful_pointer<ExecutorProxyState> self, std::size_t engine,
    transport::LinkId link, transport::OpenChannel what, FactsLoader load, PeerBoxPtr peers,
    LoadNews news);

using ExecutorStubActor = ChannelEnd::extend_with<LoadNews>::extend_with<ResultSink>;

struct ExecutorStubState {
  static inline const char* name = "executor stub";
  PeerBoxPtr peers;
  ChannelRef channel;
  ExecutorActor executor;
  std::shared_ptr<Rendezvous> rendezvous;  ///< of a rank's
};

/// What a stub needs besides its channel.
struct RankSetup {
  RankLoader load;
  kernels::CommunicatorOptions collectives;
  std::uint32_t start_ms = 0;  ///< how long the other ranks are waited for
  bool own_thread = true;
};

/// Serves one channel: starts an executor for it, loads its model, or the rank's part of it, and
/// ends it with the channel.
ExecutorStubActor::behavior_type executor_stub(
    ExecutorStubActor::stateful_pointer<ExecutorStubState> self, ChannelRef channel,
    transport::OpenChannel what, RankSetup setup, PeerBoxPtr peers);

}  // namespace sluice::actors
