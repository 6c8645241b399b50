#pragma once
// An executor on another node: its proxy beside the batcher, its stub beside the device.

#include <algorithm>
#include <functional>
#include <optional>

#include "actors/channels.hpp"
#include "actors/executor.hpp"
#include "actors/log.hpp"
#include "actors/rendezvous.hpp"
#include "actors/step_watch.hpp"
#include "engine/plan_check.hpp"

namespace sluice::actors {

/// What a node knows of an engine without loading its weights: name, tokenizer, chat format.
using FactsLoader = std::function<Result<std::shared_ptr<EngineFacts>>()>;

/// The reader's own facts completed by what the node that computes said. `unsupported` when the two
/// read different tokenizers.
Result<EngineFactsPtr> complete(std::shared_ptr<EngineFacts> facts,
                                const transport::ChannelOpened& opened);

/// Ids of its tokens are below this.
inline std::uint32_t vocabulary_of(const EngineFacts& facts) {
  return std::max(facts.vocabulary, facts.tokenizer->size());
}

/// What another node is told of an engine.
transport::ChannelOpened describe_channel(const EngineFacts& facts);

using ExecutorProxyActor =
    ExecutorActor::extend_with<ChannelEnd>::extend<caf::reacts_to<tick_atom>>;

struct ExecutorProxySetup {
  std::size_t engine = 0;  ///< of the configuration
  transport::LinkId link = 0;
  transport::OpenChannel what;
  FactsLoader load;
  std::uint32_t step_ms = 0;  ///< a step that takes longer has hung
  PeerBoxPtr peers;
  LoadNews news;
  std::shared_ptr<RequestLog> log;
};

struct ExecutorProxyState {
  static inline const char* name = "executor proxy";
  ExecutorProxySetup setup;
  ChannelRef channel;
  ResultSink batcher;
  StepWatch steps;
  std::optional<engine::ResultCheck> check;  ///< once the engine is known
};

/// Opens `what` on `link`, tells `news` when the far executor is ready or why it is not, and ends
/// when the channel is lost, a step hangs or a result comes that no device gives: to whoever
/// monitors it that is an executor's end. Results go to whoever sent the last plan.
ExecutorProxyActor::behavior_type executor_proxy(
    ExecutorProxyActor::stateful_pointer<ExecutorProxyState> self, ExecutorProxySetup setup);

using ExecutorStubActor =
    ChannelEnd::extend_with<LoadNews>::extend_with<ResultSink>::extend<caf::reacts_to<tick_atom>>;

/// What a stub needs besides its channel.
struct RankSetup {
  RankLoader load;
  kernels::CommunicatorOptions collectives;
  std::uint32_t start_ms = 0;  ///< how long the other ranks are waited for
  bool own_thread = true;
  GroupPrepare prepare = kernels::prepare_tcp;
};

struct ExecutorStubState {
  static inline const char* name = "executor stub";
  RankSetup setup;
  PeerBoxPtr peers;
  ChannelRef channel;
  ExecutorActor executor;                  ///< a rank's once it knows the others' addresses
  ExecutorActor steps;                     ///< takes the plans, once the model is loaded
  std::shared_ptr<Rendezvous> rendezvous;  ///< of a rank's
  std::optional<engine::PlanCheck> check;  ///< once the model is loaded
};

/// Serves one channel: starts an executor for it, loads its model, or the rank's part of it, and
/// ends it with the channel. A plan that no scheduler makes ends it too, with `bad_request`.
ExecutorStubActor::behavior_type executor_stub(
    ExecutorStubActor::stateful_pointer<ExecutorStubState> self, ChannelRef channel,
    transport::OpenChannel what, RankSetup setup, PeerBoxPtr peers);

}  // namespace sluice::actors
