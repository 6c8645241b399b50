#pragma once
// Starts the actors of a node, watches them, restarts what can be restarted.

#include <memory>
#include <string>
#include <vector>

#include "actors/actors.hpp"
#include "actors/executor.hpp"
#include "actors/session.hpp"
#include "actors/status.hpp"

namespace sluice::actors {

struct SupervisorSetup {
  std::vector<EngineLoader> engines;  ///< each callable again, for a restart
  SessionActor session;               ///< spawned by the node: the bridge needs it first
  OutboxPtr outbox;
  std::string publish;  ///< where subscribers connect, as bound
  transport::StreamConfig stream;
  std::uint32_t tokenizers = 1;
  std::uint32_t streamers = 1;
  std::shared_ptr<RequestLog> log;
  std::shared_ptr<NodeStatus> status;
  bool detach_executors = true;  ///< false under the test coordinator
};

struct SupervisorState {
  static inline const char* name = "supervisor";
  struct Engine {
    ExecutorActor executor;
    BatcherActor batcher;
    EngineFactsPtr facts;  ///< set while it serves
    std::uint32_t restarts = 0;
  };
  SupervisorSetup setup;
  std::vector<Engine> engines;
  FrontParts front;
  bool stopping = false;
};

/// An engine whose executor or batcher ends is loaded again, its streams failed with `unavailable`;
/// three times, then the node has failed. A front actor that ends fails the node: clients hold what
/// they need to go on elsewhere.
SupervisorActor::behavior_type supervisor(SupervisorActor::stateful_pointer<SupervisorState> self,
                                          SupervisorSetup setup);

}  // namespace sluice::actors
