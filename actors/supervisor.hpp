#pragma once
// Starts the actors of a node, watches them, restarts what can be restarted; finds on other nodes
// what this one lacks.

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/actors.hpp"
#include "actors/channels.hpp"
#include "actors/executor.hpp"
#include "actors/group.hpp"
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
  RankLoader executor;      ///< callable again, for a restart; empty: on another node
  FactsLoader facts;        ///< where a part is on another node
  std::uint32_t ranks = 1;  ///< of its group; those that are not here are offered
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
  PeerBoxPtr peers;                         ///< null: there are no other nodes
  std::function<NamedValues()> more_stats;  ///< told with a stats answer; empty: none
  std::uint64_t epoch = 0;                  ///< of this process: groups' epochs begin above it
  std::string collectives;                  ///< this host's address for them
  std::uint32_t group_start_ms = 60'000;
  std::uint32_t step_ms = 10'000;
  /// A model that loads and then loses its executor more often has a fault that reloading does not
  /// mend. No less than `Scheduler::losses_max`, by which one request's fault is told apart.
  std::uint32_t restarts_max = engine::Scheduler::losses_max;
  bool own_threads = true;  ///< for executors and tokenizers; false under the test coordinator
  GroupPrepare prepare_group = kernels::prepare_tcp;
};

struct SupervisorState {
  static inline const char* name = "supervisor";
  /// A batcher on another node.
  struct Replica {
    BatcherProxyActor batcher;
    EngineFactsPtr facts;  ///< set while it serves
  };
  struct Engine {
    ExecutorActor executor;  ///< or its proxy, or its group
    ExecutorActor steps;     ///< takes its plans
    BatcherActor batcher;
    EngineFactsPtr facts;  ///< set while it serves
    EngineFactsPtr next;   ///< of an executor that waits for the former batcher's end
    std::uint32_t restarts = 0;
    bool ending = false;  ///< the executor was killed, to be started again
    bool failed = false;  ///< for good, and the node with it
    bool waits = false;   ///< for offers, which was logged
    std::chrono::milliseconds pause{0};  ///< after the last start, which failed; doubles
    caf::actor_clock::time_point rests_until{};  ///< no start before
    std::map<transport::LinkId, Replica> replicas;
  };
  SupervisorSetup setup;
  std::vector<Engine> engines;
  FrontParts front;
  TokenizerProxyActor tokenizer_proxy;
  HostActor host;
  std::map<transport::LinkId, PeerOffers> offers;
  std::uint64_t epoch = 0;  ///< of the last group
  bool looking = false;     ///< a tick is on its way
  bool stopping = false;
};

/// An engine whose executor ends gets another, and its batcher goes on with that: streams pause.
/// They fail with `unavailable` where that cannot be: the batcher ended, or the engine comes back
/// with other numerics or a smaller pool. An executor of this process is loaded again
/// `restarts_max` times, then the node has failed; one of other processes may be lost any number of
/// times, and is looked for until it is offered again. A front actor that ends fails the node:
/// clients hold what they need to go on elsewhere.
SupervisorActor::behavior_type supervisor(SupervisorActor::stateful_pointer<SupervisorState> self,
                                          SupervisorSetup setup);

}  // namespace sluice::actors
