#pragma once
// One simulated node process: all its real actors, a device that checks what it is given, and a
// wire that somebody else carries. Runs only when told to; killed, it leaves nothing but silence.

#include <deque>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>

#include "tests/engine/fake_device.hpp"
#include "tests/fakes/node_actors.hpp"

namespace sluice::simulate {

constexpr std::uint64_t ms = 1'000'000;

/// All chance comes from one of these.
struct Random {
  std::mt19937_64 engine;

  std::uint64_t below(std::uint64_t end) { return engine() % end; }
  std::uint32_t between(std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(below(std::uint64_t{high} - low + 1));
  }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
};

/// A promise that was broken.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What stays the same when a node is started anew.
struct NodeShape {
  engine::SchedulerConfig scheduler;
  transport::StreamConfig stream;
  std::uint32_t step_fails_one_in = 0;  ///< of the steps; 0: none
  std::uint32_t rank_errs_one_in = 0;   ///< of the steps of a group's rank; 0: none
};

/// Where a node's frames go. Called while the node runs.
struct Wire {
  /// False when the connection is gone, as a ROUTER socket finds out.
  std::function<bool(const transport::Peer&, const std::string&)> send;
  std::function<void(const transport::StreamId&, const std::string&)> publish;
};

/// What serves at an address: a node, or a fleet of them.
class Site {
 public:
  virtual ~Site() = default;

  /// A frame from a client.
  virtual void receive(const transport::Peer& peer, const std::string& frame) = 0;

  /// Lets time pass, with whatever falls due.
  virtual void advance(std::uint64_t now_ns) = 0;
  /// Runs up to so many of its actors' messages, the next actor chosen by chance.
  virtual void run(std::size_t messages) = 0;

  /// A step is being computed.
  virtual bool busy() const = 0;
  /// The oldest step is done.
  virtual void complete_step() = 0;
  /// The device throws at the next step: its executor ends, another takes over with an empty
  /// device, and streams go on.
  virtual void lose_device() = 0;

  virtual bool steps_failed() const = 0;
  /// Executors lost for the network's sake, or another process's.
  virtual std::uint32_t executors_lost() const { return 0; }
  /// After all streams have ended and retention is over: nothing is held any more.
  virtual void check_idle() = 0;
};

class Node : public Site {
 public:
  Node(const NodeShape& shape, std::uint64_t seed, std::uint64_t now_ns, Wire wire);
  ~Node() override;

  void receive(const transport::Peer& peer, const std::string& frame) override;
  void advance(std::uint64_t now_ns) override;
  void run(std::size_t messages) override;
  bool busy() const override;
  void complete_step() override;
  void lose_device() override;
  bool steps_failed() const override;
  void check_idle() override;

 private:
  struct Inside;

  NodeShape shape_;
  Random random_;
  std::uint64_t now_ns_;
  std::unique_ptr<Inside> inside_;
  fakes::NodeActors actors_;
};

/// What a choice of a stream must be, alone and without faults.
struct Expected {
  std::vector<Token> tokens;
  std::string text;
  engine::FinishReason finish = engine::FinishReason::none;
};

/// Of each of its choices.
std::vector<Expected> expect(const transport::Submit& submit, std::uint32_t context_tokens);

}  // namespace sluice::simulate
