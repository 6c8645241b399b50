#pragma once
// What this node does for others: offers its roles to every peer, and serves the channels they
// open.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/channels.hpp"
#include "actors/log.hpp"
#include "actors/remote_executor.hpp"

namespace sluice::actors {

/// An engine of the configuration, as far as this node can serve it to others.
struct HostedEngine {
  std::string name;
  FactsLoader facts;
  bool tokenizer = false;  ///< offers one
  RankLoader executor;     ///< offers one, loaded when a channel opens; empty: none
};

struct HostSetup {
  PeerBoxPtr peers;
  std::vector<HostedEngine> engines;
  OfferNews news;
  std::shared_ptr<RequestLog> log;
  kernels::CommunicatorOptions collectives;  ///< of the ranks that run here
  std::uint32_t group_start_ms = 0;
  std::function<void()> executor_ended;  ///< called when one ended, if set
  bool own_threads = true;  ///< for executors; false under the test coordinator
  GroupPrepare prepare_group = kernels::prepare_tcp;
};

struct HostState {
  static inline const char* name = "host";
  struct Serving {
    EngineFactsPtr facts;
    EngineActor batcher;
  };
  HostSetup setup;
  std::map<transport::LinkId, std::string> peers;  ///< names, while they are connected
  std::vector<Serving> batchers;
  /// By engine and leader: the highest epoch that asked.
  std::map<std::pair<std::string, std::string>, std::uint64_t> epochs;
  std::map<std::string, ExecutorStubActor> executors;  ///< by engine: one device, one channel
};

/// An executor serves one channel at a time: who asks while it is taken is told so, and asks again.
HostActor::behavior_type host(HostActor::stateful_pointer<HostState> self, HostSetup setup);

}  // namespace sluice::actors
