#pragma once
// One process of a simulated fleet: what stays of it when it is started anew, and what dies.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "actors/channel_table.hpp"
#include "actors/host.hpp"
#include "tests/simulate/parts.hpp"
#include "transport/link.hpp"

namespace sluice::simulate {

/// What actors/peer_bridge is between actors and links, without a thread.
class Peers : public actors::PeerBox {
 public:
  using Post = std::function<void(transport::LinkId, std::string)>;
  explicit Peers(Post post) : post_(std::move(post)) {}

  actors::ChannelRef open(transport::LinkId link, transport::OpenChannel what,
                          actors::ChannelEnd end) override {
    const auto channel = channels.open(link, end);
    if (!channel) {
      const actors::ChannelRef none{link, 0};
      tell_lost(end, none);
      return none;
    }
    what.number = channel->number;
    tell(link, what);
    return *channel;
  }
  void join(actors::ChannelRef channel, actors::ChannelEnd end) override {
    if (!channels.join(channel, end)) tell_lost(end, channel);
  }
  void send(actors::ChannelRef channel, const transport::NodeMessage& message) override {
    post_(channel.link, transport::encode(channel.number, message));
  }
  void close(actors::ChannelRef channel) override {
    if (channels.close(channel)) tell(channel.link, transport::CloseChannel{channel.number});
  }
  void tell(transport::LinkId link, const transport::NodeMessage& message) override {
    post_(link, transport::encode(0, message));
  }

  Result<void> receive(transport::LinkId link, std::string_view frame) {
    auto routed = transport::decode(frame, transport::NodeLimits{});
    if (!routed) return tl::unexpected(routed.error());
    const actors::ChannelRef channel{link, routed->channel};
    if (routed->channel != 0) {
      if (const auto end = channels.find(channel))
        caf::anon_send(end, actors::channel_atom::value, channel, std::move(routed->message));
    } else if (const auto* closed = std::get_if<transport::CloseChannel>(&routed->message)) {
      if (const auto end = channels.close({link, closed->number}))
        tell_lost(end, {link, closed->number});
    } else {
      if (const auto* what = std::get_if<transport::OpenChannel>(&routed->message))
        channels.opened({link, what->number});
      caf::anon_send(host, actors::peer_atom::value, link, std::move(routed->message));
    }
    return {};
  }

  actors::HostActor host;
  actors::ChannelTable channels;

 private:
  static void tell_lost(const actors::ChannelEnd& end, actors::ChannelRef channel) {
    caf::anon_send(end, actors::lost_atom::value, channel,
                   Error{ErrorCode::unavailable, "not connected", 0});
  }

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
