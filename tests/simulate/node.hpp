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
};

/// Where a node's frames go. Called while the node runs.
struct Wire {
  /// False when the connection is gone, as a ROUTER socket finds out.
  std::function<bool(const transport::Peer&, const std::string&)> send;
  std::function<void(const transport::StreamId&, const std::string&)> publish;
};

class Node {
 public:
  Node(const NodeShape& shape, std::uint64_t seed, std::uint64_t now_ns, Wire wire);
  ~Node();

  /// A frame from a client.
  void receive(const transport::Peer& peer, const std::string& frame);

  /// Lets time pass, with whatever falls due.
  void advance(std::uint64_t now_ns);
  /// Runs up to so many of its actors' messages, the next actor chosen by chance.
  void run(std::size_t messages);

  /// A step is being computed.
  bool busy() const;
  /// The oldest step is done.
  void complete_step();
  /// The device throws at the next step: its executor ends, another takes over with an empty
  /// device, and streams go on.
  void lose_device();

  bool steps_failed() const { return steps_failed_; }
  /// After all streams have ended and retention is over: nothing is held any more.
  void check_idle();

 private:
  class Device;
  class Way;

  Result<actors::LoadedEngine> load(kernels::Completion completion);

  NodeShape shape_;
  Random random_;
  std::uint64_t now_ns_;
  std::shared_ptr<Way> way_;
  Device* device_ = nullptr;  // the engine's present one
  bool steps_failed_ = false;
  std::string fault_;  // what the device found wrong
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
