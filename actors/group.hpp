#pragma once
// A tensor-parallel group, to its batcher one executor: rank 0 here or, like the others, on another
// node.

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/channels.hpp"
#include "actors/executor.hpp"
#include "actors/log.hpp"
#include "actors/remote_executor.hpp"
#include "actors/rendezvous.hpp"
#include "actors/step_watch.hpp"
#include "engine/plan_check.hpp"

namespace sluice::actors {

/// A rank elsewhere: a node that offers an executor.
struct RankNode {
  transport::LinkId link = 0;
  std::string name;  ///< for people
};

struct GroupSetup {
  std::size_t engine = 0;        ///< of the configuration
  std::string name;              ///< its name
  std::uint64_t epoch = 0;       ///< grows with every start of the group
  RankLoader load;               ///< of rank 0 here; empty: it is on another node
  FactsLoader facts;             ///< then what completes those that it tells
  std::vector<RankNode> others;  ///< of the ranks on other nodes, in order
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
    ChannelRef channel;   ///< none for a rank here
    std::string address;  ///< once told
    bool ready = false;
    std::deque<std::uint64_t> checksums;  ///< of its steps that are not compared yet
    std::uint64_t answered = 0;           ///< steps
  };
  GroupSetup setup;
  // Of rank 0, where it is here.
  std::shared_ptr<Rendezvous> rendezvous;
  ExecutorActor executor;  ///< once all addresses are told
  ExecutorActor own_steps;  ///< takes its plans, once it is ready

  std::vector<Rank> ranks;
  bool told = false;                         ///< all addresses are known to all
  EngineFactsPtr facts;                      ///< once rank 0 has loaded
  std::optional<engine::ResultCheck> check;  ///< of rank 0's results, where it is not here
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
