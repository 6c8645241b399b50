#pragma once
// A tensor-parallel group, to its batcher one executor: rank 0 here, the others on other nodes.

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/channels.hpp"
#include "actors/executor.hpp"
#include "actors/log.hpp"
#include "actors/rendezvous.hpp"
#include "actors/step_watch.hpp"

namespace sluice::actors {

/// A further rank: a node that offers an executor.
struct RankNode {
  transport::LinkId link = 0;
  std::string name;  ///< for people
};

struct GroupSetup {
  std::size_t engine = 0;        ///< of the configuration
  std::string name;              ///< its name
  std::uint64_t epoch = 0;       ///< grows with every start of the group
  RankLoader load;               ///< of rank 0
  std::vector<RankNode> others;  ///< of ranks 1 and up, in order
  std::string host;              ///< this node's address for collectives
  std::uint32_t start_ms = 0;    ///< what does not come within so long is named
  std::uint32_t step_ms = 0;     ///< likewise within a collective; a step may take twice as long
  PeerBoxPtr peers;
  LoadNews news;
  std::shared_ptr<RequestLog> log;
  bool own_threads = true;
  GroupPrepare prepare = kernels::prepare_tcp;
};

using watch_atom = caf::atom_constant<caf::atom("watch")>;

using GroupActor = ExecutorActor::extend_with<ChannelEnd>::extend_with<LoadNews>::extend_with<
    ResultSink>::extend<caf::reacts_to<tick_atom>, caf::reacts_to<watch_atom>>;

struct GroupState {
  static inline const char* name = "group";
  struct Rank {
    std::string node;
    ChannelRef channel;   ///< none for rank 0
    std::string address;  ///< once told
    bool ready = false;
    std::deque<std::uint64_t> checksums;  ///< of its steps that are not compared yet
    std::uint64_t answered = 0;           ///< steps
  };
  GroupSetup setup;
  std::shared_ptr<Rendezvous> rendezvous;  ///< rank 0's
  ExecutorActor executor;                  ///< rank 0's, once all addresses are told
  std::vector<Rank> ranks;
  EngineFactsPtr facts;                    ///< once rank 0 has loaded
  std::deque<engine::StepResult> results;  ///< rank 0's, not compared yet
  ResultSink batcher;
  bool serving = false;
  std::uint64_t planned = 0;  ///< steps
  StepWatch steps;
};

/// Every plan goes to every rank, at once; a result goes on when all ranks computed the same
/// tokens. Ends when a rank is lost, fails, disagrees or does not answer, with all ranks let go;
/// who is missing is logged.
GroupActor::behavior_type group(GroupActor::stateful_pointer<GroupState> self, GroupSetup setup);

}  // namespace sluice::actors
