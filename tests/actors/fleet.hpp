#pragma once
// Several nodes' actors in one system under the deterministic coordinator, and the links between
// them: messages are encoded and decoded as on a wire, links are made and cut by the test.

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/channel_box.hpp"
#include "actors/host.hpp"
#include "actors/session.hpp"
#include "actors/supervisor.hpp"
#include "bench/instant_backend.hpp"
#include "tests/actors/world.hpp"

namespace sluice::fakes {

class Fleet;

/// A node's way to the others of its fleet.
class FleetPeers : public actors::ChannelBox {
 public:
  std::map<transport::LinkId, FleetPeers*> others;  ///< who is at the other end

 private:
  void post(transport::LinkId link, std::string frame) override;
};

struct FleetNode {
  std::string name;
  std::shared_ptr<RecordingOutbox> outbox = std::make_shared<RecordingOutbox>();
  std::shared_ptr<actors::NodeStatus> status = std::make_shared<actors::NodeStatus>();
  std::shared_ptr<FleetPeers> peers = std::make_shared<FleetPeers>();
  actors::SessionActor session;
  actors::SupervisorActor supervisor;
  bench::InstantBackend* backend = nullptr;  ///< its engine's present one
  std::uint32_t loads = 0;
  std::uint32_t failing_loads = 0;  ///< so many more loads fail
};

/// Roles as in the configuration, e.g. "front tokenizer". `hold`: steps complete only by `step`.
class Fleet {
 public:
  explicit Fleet(bool hold = false) : hold_(hold) {}
  ~Fleet();

  FleetNode& add(const std::string& name, const std::string& roles);
  void connect(FleetNode& dialer, FleetNode& listener);
  void cut(FleetNode& a, FleetNode& b);

  void run() { coordinator().run(); }
  void advance(std::chrono::milliseconds time) {
    coordinator().advance_time(time);
    run();
  }
  bool step(FleetNode& node);

  /// The end of a channel that keeps what comes by it, and whether it was closed.
  actors::ChannelEnd keep(std::vector<transport::NodeMessage>& heard, bool& closed);
  void say(FleetNode& node, const std::string& peer, transport::Message message);

 private:
  caf::scheduler::test_coordinator& coordinator() {
    return dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
  }
  struct Config : caf::actor_system_config {
    Config() { set("scheduler.policy", caf::atom("testing")); }
  };
  Config config_;
  caf::actor_system system_{config_};
  std::vector<std::unique_ptr<FleetNode>> nodes_;
  transport::LinkId last_link_ = 0;
  bool hold_ = false;
};

}  // namespace sluice::fakes
