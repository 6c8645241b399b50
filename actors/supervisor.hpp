#pragma once
// Starts the actors of a node, watches them, restarts what can be restarted; finds on other nodes
// what this one lacks.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/actors.hpp"
#include "actors/channels.hpp"
#include "actors/executor.hpp"
#include "actors/remote_batcher.hpp"
#include "actors/remote_executor.hpp"
#include "actors/remote_tokenizer.hpp"
#include "actors/session.hpp"
#include "actors/status.hpp"

namespace sluice::actors {

/// One engine of the configuration: which of its parts run here. What does not, peers offer.
struct EngineSetup {
  std::string name;
  bool batcher = true;
  EngineLoader executor;  ///< callable again, for a restart; empty: on another node
  FactsLoader facts;      ///< where a part is on another node
};

struct SupervisorSetup {
  std::vector<EngineSetup> engines;
  SessionActor session;  ///< spawned by the node: the bridge needs it first. Null: no front here
  OutboxPtr outbox;
  std::string publish;  ///< where subscribers connect, as bound
  transport::StreamConfig stream;
  std::uint32_t tokenizers = 1;  ///< 0: on other nodes
  std::uint32_t streamers = 1;
  std::shared_ptr<RequestLog> log;
  std::shared_ptr<NodeStatus> status;
  PeerBoxPtr peers;              ///< null: there are no other nodes
  bool own_threads = true;  ///< for executors and tokenizers; false under the test coordinator
};

struct SupervisorState {
  static inline const char* name = "supervisor";
  /// A batcher on another node.
  struct Replica {
    BatcherProxyActor batcher;
    EngineFactsPtr facts;  ///< set while it serves
  };
  struct Engine {
    ExecutorActor executor;  ///< or its proxy
    BatcherActor batcher;
    EngineFactsPtr facts;  ///< set while it serves
    std::uint32_t restarts = 0;
    std::map<transport::LinkId, Replica> replicas;
  };
  SupervisorSetup setup;
  std::vector<Engine> engines;
  FrontParts front;
  TokenizerProxyActor tokenizer_proxy;
  HostActor host;
  std::map<transport::LinkId, PeerOffers> offers;
  bool looking = false;  ///< a tick is on its way
  bool stopping = false;
};

/// An engine whose executor or batcher ends is loaded again, its streams failed with `unavailable`;
/// three times, then the node has failed. A part on another node may be lost any number of times:
/// it is looked for until it is offered again. A front actor that ends fails the node: clients hold
/// what they need to go on elsewhere.
SupervisorActor::behavior_type supervisor(SupervisorActor::stateful_pointer<SupervisorState> self,
                                          SupervisorSetup setup);

}  // namespace sluice::actors
