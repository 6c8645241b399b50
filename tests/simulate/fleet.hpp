#pragma once
// Several simulated processes that serve as one: roles on different nodes, the real links between
// them, and a network of their own that breaks, cuts and stalls. Clients see its front.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "tests/simulate/collectives.hpp"
#include "tests/simulate/node.hpp"
#include "transport/link.hpp"

namespace sluice::simulate {

/// What came up: what never happens is not tested.
struct Tally {
  std::map<std::string, std::uint64_t> counts;
  double request_hours = 0;
};

struct Process;

class Fleet : public Site {
 public:
  /// Nothing goes wrong any more from `calm_ns` on.
  Fleet(const NodeShape& shape, std::uint64_t seed, std::uint64_t now_ns, std::uint64_t calm_ns,
        Wire wire, Tally& tally, bool narrate);
  ~Fleet() override;

  void receive(const transport::Peer& peer, const std::string& frame) override;
  void advance(std::uint64_t now_ns) override;
  void run(std::size_t messages) override;
  bool busy() const override;
  void complete_step() override;
  void lose_device() override;
  bool steps_failed() const override;
  std::uint32_t executors_lost() const override;
  void check_idle() override;

 private:
  /// Two directions, each in order; index 0 is the dialer's end.
  struct Connection {
    struct End {
      std::size_t process = 0;
      std::uint64_t incarnation = 0;
      transport::Route route;
      bool deaf = false;              ///< nothing reaches it any more, and nobody knows
      std::uint64_t last_due_ns = 0;  ///< of what is on its way to it
    };
    End ends[2];
    bool broken = false;
  };
  struct Event {
    std::uint64_t at_ns = 0;
    std::uint64_t order = 0;
    std::function<void()> happen;
    bool operator<(const Event& other) const {
      return at_ns != other.at_ns ? at_ns > other.at_ns : order > other.order;
    }
  };

  void at(std::uint64_t at_ns, std::function<void()> happen);
  /// Another process for a place, which dials those before it.
  void add(std::size_t place, const std::string& roles, Wire wire);
  void start(std::size_t process);
  void kill(std::size_t process);
  void replace(std::size_t process);
  bool is_current(const Process& process) const;
  bool runs(const Process& process) const;
  void settle(Process& process, std::size_t messages);
  void act(Process& process, transport::LinkOutput out);
  void transmit(Process& process, transport::LinkFrame frame);
  void deliver(std::size_t connection, int to, const std::shared_ptr<transport::LinkFrame>& frame);
  void take(std::size_t connection, int to, const transport::LinkFrame& frame);
  bool waits(const Process& process) const;
  bool passes(std::size_t a, std::size_t b) const;
  void harm();
  void check(const Process& process);
  void tell(const std::string& what, const Process& process) const;

  NodeShape shape_;
  Random random_;
  std::uint64_t now_ns_;
  std::uint64_t calm_ns_;
  Tally& tally_;
  bool narrate_;
  std::uint64_t events_ = 0;
  std::uint64_t delay_max_ns_ = 0;
  std::uint32_t group_start_ms_ = 0, step_ms_ = 0;
  std::uint32_t executors_lost_ = 0;  // with a link, or another rank
  Collectives collectives_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<std::size_t> current_;         // by place: the process that its address leads to
  std::vector<std::uint64_t> incarnations_;  // by place
  std::deque<Connection> connections_;
  std::map<std::pair<std::size_t, std::size_t>, std::uint64_t> cut_until_ns_;  // by pair
  std::priority_queue<Event> queue_;
  std::uint32_t fault_one_in_ = 0;  // of the processes and links, each second; 0: none
};

}  // namespace sluice::simulate
