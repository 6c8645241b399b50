#pragma once
// A whole node's actors under the deterministic coordinator: nothing runs but by `run()`, time
// moves only by `advance()`, and what would go to sockets is decoded and kept.

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/instant_backend.hpp"
#include "tests/fakes/byte_tokenizer.hpp"
#include "tests/fakes/node_actors.hpp"

namespace sluice::fakes {

class RecordingOutbox : public actors::Outbox {
 public:
  void send(const transport::Peer& peer, std::shared_ptr<const std::string> frame) override {
    sent[peer].push_back(*transport::decode(*frame, transport::Limits()));
  }
  void publish(const transport::StreamId& stream,
               std::shared_ptr<const std::string> frame) override {
    published[stream].push_back(*transport::decode(*frame, transport::Limits()));
  }
  actors::NamedValues stats() const override { return {{"io.frames_in", 1}}; }

  std::map<transport::Peer, std::vector<transport::Message>> sent;
  std::map<transport::StreamId, std::vector<transport::Message>> published;
};

struct WorldOptions {
  bool hold = false;  ///< steps complete only by `step()`
  std::uint32_t slots = 4;
  std::uint32_t blocks = 64;
  std::uint32_t context_tokens = 256;
  std::uint32_t queue_max = 8;
  std::uint32_t fail_loads = 0;  ///< how many times loading fails, from the second on
  bool fail_first_load = false;
  bool throw_first_load = false;
  std::uint32_t deadly_loads = 0;  ///< backends, from the first on, that die of their first step
  bool other_numerics = false;     ///< of every load behind the first
  std::uint32_t other_blocks = 0;  ///< likewise; 0: as many
  bool cache = false;  ///< prompts' blocks are shared
  transport::StreamConfig stream = {};
};

class World : public NodeActors {
 public:
  explicit World(WorldOptions options = {}) : World(options, std::make_shared<RecordingOutbox>()) {}

  /// Runs every message there is.
  void run() { coordinator().run(); }
  void advance(std::chrono::milliseconds time) {
    coordinator().advance_time(time);
    run();
  }
  /// Completes the oldest step, then runs; false when none was held.
  bool step();

  void say(const std::string& peer, transport::Message message);
  std::vector<transport::Message>& heard(const std::string& peer) { return outbox->sent[peer]; }

  /// A submit with text prompt; stream and owner are made of `name`.
  static transport::Submit submit(std::uint8_t name, const std::string& prompt,
                                  std::uint32_t max_tokens);
  /// The text that a stream of this prompt and seed must have.
  static std::string expected(const std::string& prompt, std::uint64_t seed, std::uint32_t tokens);

  /// Value from a stats answer.
  double stat(const std::string& name);

  std::shared_ptr<RecordingOutbox> outbox;
  bench::InstantBackend* backend = nullptr;  ///< the engine's present one
  std::uint32_t loads = 0;

 private:
  World(WorldOptions options, std::shared_ptr<RecordingOutbox> recording);
  Result<actors::LoadedEngine> load(kernels::Completion completion);

  WorldOptions options_;
};

}  // namespace sluice::fakes
