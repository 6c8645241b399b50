#pragma once
// A whole node's actors under the deterministic coordinator: nothing runs but when told to, time
// moves only by the coordinator's clock, and the device and the way out are the caller's.

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <memory>
#include <utility>

#include "actors/session.hpp"
#include "actors/supervisor.hpp"

namespace sluice::fakes {

struct NodeActorsSetup {
  actors::OutboxPtr outbox;
  actors::EngineLoader load;  ///< of the one engine; called when the actors run
  transport::StreamConfig stream;
  transport::SessionConfig session;
  std::uint32_t restarts_max = actors::SupervisorSetup().restarts_max;
};

class NodeActors {
 public:
  explicit NodeActors(NodeActorsSetup setup) {
    actors::NodeConfig node;
    node.log_level = "off";
    auto log = *actors::RequestLog::open(node);
    session = system_.spawn(actors::session,
                            actors::SessionSetup{setup.outbox, setup.session, 1, log, status});
    actors::SupervisorSetup supervised;
    supervised.engines.push_back(
        {"bytes", true,
         [load = std::move(setup.load)](kernels::Completion completion, const auto&) {
           return load(std::move(completion));
         },
         {}});
    supervised.session = session;
    supervised.outbox = std::move(setup.outbox);
    supervised.publish = "inproc://published";
    supervised.log = log;
    supervised.status = status;
    supervised.own_threads = false;
    supervised.restarts_max = setup.restarts_max;
    supervised.streamers = 2;
    supervised.stream = setup.stream;
    supervisor = system_.spawn(actors::supervisor, std::move(supervised));
  }
  ~NodeActors() {
    caf::anon_send_exit(supervisor, caf::exit_reason::user_shutdown);
    coordinator().run();
  }

  caf::scheduler::test_coordinator& coordinator() {
    return dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
  }
  caf::actor_system& system() { return system_; }

  std::shared_ptr<actors::NodeStatus> status = std::make_shared<actors::NodeStatus>();
  actors::SupervisorActor supervisor;
  actors::SessionActor session;

 private:
  struct Config : caf::actor_system_config {
    Config() { set("scheduler.policy", caf::atom("testing")); }
  };
  Config config_;
  caf::actor_system system_{config_};
};

}  // namespace sluice::fakes
