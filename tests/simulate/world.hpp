#pragma once
// Nodes, clients and the network between them under virtual time, with faults that a seed decides:
// delay, connections that break with what is under way, messages of an old connection that arrive
// behind those of a new one, partitions, killed processes, lost devices. Then calm: all must end.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <queue>

#include "tests/simulate/client.hpp"
#include "tests/simulate/fleet.hpp"

namespace sluice::simulate {

class World {
 public:
  /// With `fleets`, each address leads to several processes that serve as one. With `narrate`,
  /// tells on stdout what is said and what goes wrong.
  World(std::uint64_t seed, bool fleets, Tally& tally, bool narrate = false);

  /// Throws a Violation.
  void run();

  /// Of all that every client was handed, and when: the same for the same seed.
  std::uint64_t trace() const { return trace_; }

 private:
  /// A node's place: what address leads there, which process serves it now.
  struct Host {
    NodeShape shape;
    std::unique_ptr<Site> node;
    std::uint64_t incarnation = 0;
    std::uint64_t cut_off_until_ns = 0;
    bool step_due = false;
  };

  struct Connection {
    std::size_t client = 0;
    std::size_t host = 0;
    std::uint64_t incarnation = 0;
    bool open = true;                                // as both ends see it
    std::uint64_t last_up_ns = 0, last_down_ns = 0;  // latest arrival: they stay in order
    bool down_cut = false;                           // what is on its way to the client is lost
    std::uint64_t up_cut_ns = UINT64_MAX;            // what would arrive at the node later is lost
  };

  struct Place {  // a client, its connection
    std::unique_ptr<Client> client;
    std::optional<std::size_t> connection;
    std::size_t host = 0;
    bool ticking = false;
  };

  struct Event {
    std::uint64_t at_ns = 0;
    std::uint64_t order = 0;
    std::function<void()> happen;
    bool operator<(const Event& other) const {  // a heap has its greatest first
      return at_ns != other.at_ns ? at_ns > other.at_ns : order > other.order;
    }
  };

  void at(std::uint64_t at_ns, std::function<void()> happen);
  void after(std::uint64_t ns, std::function<void()> happen) {
    at(now_ns_ + ns, std::move(happen));
  }
  bool calm() const { return now_ns_ >= calm_ns_; }

  void start_host(std::size_t host);
  void kill_host(std::size_t host);
  void cut_off(std::size_t host);
  void settle(std::size_t host);
  void drive_steps(std::size_t host);

  void add_owner();
  void add_follower();
  void connect(std::size_t client);
  void lose_connection(std::size_t connection);
  void tick(std::size_t client);
  void say(std::size_t client, std::vector<transport::Message> messages);
  void hear(std::size_t connection, const std::string& frame);
  void publish(std::size_t host, const transport::StreamId& stream, const std::string& frame);
  void harm();
  void tell(std::string_view what, std::size_t about, std::string_view frame = {}) const;

  transport::Submit random_submit();
  NodeShape random_shape();
  std::uint64_t delay_ns();
  std::uint64_t all_end_within_ns() const;

  Random random_;
  bool fleets_;
  Tally& tally_;
  bool narrate_;
  std::uint64_t now_ns_ = 1;
  std::uint64_t events_ = 0;
  std::uint64_t calm_ns_ = 0;
  std::uint64_t trace_ = 0;
  std::priority_queue<Event> queue_;
  std::vector<Host> hosts_;
  std::vector<Place> places_;
  std::deque<Connection> connections_;
  std::map<transport::Peer, std::size_t> peers_;  // connections as their node knows them
  bool steps_failed_ = false;
  std::uint32_t devices_lost_ = 0;

  std::uint64_t delay_max_ns_ = 0;
  std::uint64_t step_max_ns_ = 0;
  std::uint32_t break_one_in_ = 0;  // of the connections, each second
  std::uint32_t kill_one_in_ = 0;   // of the nodes, each second
  std::uint32_t cut_one_in_ = 0;
  std::uint32_t lose_one_in_ = 0;   // of the devices, each second
  std::uint32_t crash_one_in_ = 0;  // of the clients, each second
  std::uint32_t drop_one_in_ = 0;   // of the frames to subscribers
};

}  // namespace sluice::simulate
