#pragma once
// One process of a simulated fleet: what stays of it when it is started anew, and what dies.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "actors/channel_box.hpp"
#include "actors/host.hpp"
#include "tests/simulate/parts.hpp"
#include "transport/link.hpp"

namespace sluice::simulate {

/// What actors/peer_bridge is between actors and links, without a thread.
class Peers : public actors::ChannelBox {
 public:
  using Post = std::function<void(transport::LinkId, std::string)>;
  explicit Peers(Post post) : post_(std::move(post)) {}

 private:
  void post(transport::LinkId link, std::string frame) override { post_(link, std::move(frame)); }

  Post post_;
};

struct Process {
  struct Config : caf::actor_system_config {
    Config() { set("scheduler.policy", caf::atom("testing")); }
  };
  /// All that dies with it.
  struct Life {
    Config config;
    caf::actor_system system{config};
    std::shared_ptr<Peers> peers;
    std::optional<transport::Links> links;
    std::shared_ptr<Way> way;
    actors::SessionActor session;
    actors::SupervisorActor supervisor;
    std::shared_ptr<actors::NodeStatus> status = std::make_shared<actors::NodeStatus>();
    std::uint64_t clock_ns = 0;
    std::uint64_t next_tick_ns = 0;
    std::uint64_t stopped_until_ns = 0;
    /// What arrives while it stands still, in order.
    std::deque<std::function<void()>> waiting;

    caf::scheduler::test_coordinator& coordinator() {
      return dynamic_cast<caf::scheduler::test_coordinator&>(system.scheduler());
    }
  };

  std::size_t index = 0;
  std::size_t place = 0;  ///< in the layout
  std::string name, roles;
  std::uint64_t incarnation = 0;
  Wire wire;
  Trouble trouble;
  Device* device = nullptr;
  std::uint64_t slow_until_ns = 0;  ///< its device gets no step done
  struct Session {
    transport::NodeIdentity peer;
    std::uint64_t heard = 0;  ///< messages
  };
  std::map<transport::LinkId, Session> up;
  std::map<std::string, std::uint64_t> newest;  ///< incarnation that it knows, by name
  std::unique_ptr<Life> life;
};

}  // namespace sluice::simulate
