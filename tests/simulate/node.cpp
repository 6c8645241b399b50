#include "tests/simulate/node.hpp"

#include <algorithm>

#include "tests/fakes/byte_tokenizer.hpp"

namespace sluice::simulate {

namespace {

/// As often as a simulated hour brings it about: no node gives itself up here.
constexpr std::uint32_t restarts_max = 1000;

constexpr const char* numerics = "00112233445566778899aabbccddeeff";

transport::SessionConfig session_config(const NodeShape& shape) {
  transport::SessionConfig config;
  config.welcome.window_tokens = shape.stream.window_tokens;
  return config;
}

}  // namespace

/// The checking device of the scheduler's simulation, behind the interface of a backend. A step
/// takes effect when it is complete.
class Node::Device : public kernels::Backend {
 public:
  Device(Node& node, kernels::Completion completion)
      : node_(node),
        completion_(std::move(completion)),
        checked_(node.shape_.scheduler, fakes::ByteTokenizer().size()) {
    info_.backend = "simulated";
    info_.paths_equal = node.shape_.scheduler.paths_equal;
  }
  ~Device() override {
    if (node_.device_ == this) node_.device_ = nullptr;
  }

  const kernels::DeviceInfo& device() const override { return info_; }
  Result<kernels::Weight> load(const kernels::HostTensor&) override { return kernels::Weight{}; }
  Result<void> allocate(const kernels::PoolShape&) override { return {}; }
  Result<kernels::ProgramId> record(const kernels::StepProgram&) override {
    return kernels::ProgramId{};
  }
  void sample(kernels::Ticket ticket, std::vector<kernels::Mask> masks) override {
    masks_.push_back({ticket, std::move(masks)});
  }
  Result<double> read_bandwidth(std::size_t) override { return 0.0; }
  Result<void> read(kernels::ProgramId, kernels::Buffer, std::span<float>) override { return {}; }

  void submit(kernels::ProgramId, kernels::Ticket ticket, kernels::Batch batch) override {
    if (lost_) throw std::runtime_error("the device was lost on purpose");
    plans_.push_back({ticket, std::move(batch)});
  }

  /// Not yet, as long as the oldest step's masks have not come.
  void complete() {
    if (!plans_.front().batch.sample_now && masks_.empty()) return;
    const engine::StepPlan plan = std::move(plans_.front());
    plans_.pop_front();
    const bool fails =
        node_.shape_.step_fails_one_in != 0 && node_.random_.one_in(node_.shape_.step_fails_one_in);
    node_.steps_failed_ = node_.steps_failed_ || fails;
    try {
      engine::StepMasks masks;
      if (!plan.batch.sample_now) {
        masks = std::move(masks_.front());
        masks_.pop_front();
      }
      completion_(checked_.run(plan, fails, {}, plan.batch.sample_now ? nullptr : &masks));
    } catch (const std::logic_error& error) {
      node_.fault_ = error.what();
    }
  }

  bool busy() const { return !plans_.empty(); }
  bool all_closed() const { return checked_.all_closed(); }
  void lose() { lost_ = true; }

 private:
  Node& node_;
  kernels::Completion completion_;
  kernels::DeviceInfo info_;
  engine::test::FakeDevice checked_;
  std::deque<engine::StepPlan> plans_;
  std::deque<engine::StepMasks> masks_;  // of the plans that owe some, in order
  bool lost_ = false;
};

/// Hands frames to the wire, and checks what the node says of each stream: subscribers see every
/// token once and in order, one terminal and nothing behind it.
class Node::Way : public actors::Outbox {
 public:
  explicit Way(Wire wire) : wire_(std::move(wire)) {}

  void send(const transport::Peer& peer, std::shared_ptr<const std::string> frame) override {
    if (!dead && !wire_.send(peer, *frame)) lost.push_back(peer);
  }

  void publish(const transport::StreamId& stream,
               std::shared_ptr<const std::string> frame) override {
    if (dead) return;
    check(stream, *transport::decode(*frame, transport::Limits()));
    wire_.publish(stream, *frame);
  }

  actors::NamedValues stats() const override { return {}; }

  bool dead = false;
  std::vector<transport::Peer> lost;
  std::string fault;

 private:
  struct Published {
    std::uint64_t epoch = 0;
    std::map<std::uint32_t, std::uint32_t> next;  // of each choice
    bool over = false;
  };

  void check(const transport::StreamId& stream, const transport::Message& message) {
    const auto blame = [&](const char* what) {
      if (fault.empty()) fault = fmt::format("stream {}: {}", transport::to_hex(stream), what);
    };
    const auto* chunk = std::get_if<transport::Chunk>(&message);
    const auto* done = std::get_if<transport::Done>(&message);
    const std::uint64_t epoch = chunk  ? chunk->epoch
                                : done ? done->epoch
                                       : std::get<transport::Failed>(message).epoch;
    Published& known = published_[stream];
    if (epoch < known.epoch) return blame("an epoch that is over spoke");
    if (epoch > known.epoch) known = {epoch, {}, false};
    if (known.over) return blame("something follows the terminal");
    if (chunk == nullptr) {
      known.over = true;
      if (done == nullptr &&
          std::get<transport::Failed>(message).error.code == ErrorCode::unavailable)
        blame("a lost device ended it");
      for (const auto& [choice, next] : known.next)
        if (done != nullptr && done->tokens.at(choice) != next)
          blame("the terminal counts other tokens than were published");
      return;
    }
    const auto& part = chunk->part;
    const auto [next, is_first] = known.next.try_emplace(chunk->choice, part.first_index);
    if (!is_first && part.first_index != next->second) blame("tokens are not in order");
    next->second = part.first_index + static_cast<std::uint32_t>(part.tokens.size());
  }

  Wire wire_;
  std::map<transport::StreamId, Published> published_;
};

Node::Node(const NodeShape& shape, std::uint64_t seed, std::uint64_t now_ns, Wire wire)
    : shape_(shape),
      random_{std::mt19937_64(seed)},
      now_ns_(now_ns),
      way_(std::make_shared<Way>(std::move(wire))),
      actors_({way_, [this](kernels::Completion completion) { return load(std::move(completion)); },
               shape.stream, session_config(shape), restarts_max}) {}

Node::~Node() { way_->dead = true; }

Result<actors::LoadedEngine> Node::load(kernels::Completion completion) {
  actors::LoadedEngine loaded;
  auto made = std::make_unique<Device>(*this, std::move(completion));
  device_ = made.get();
  loaded.backend = std::move(made);
  auto facts = std::make_shared<actors::EngineFacts>();
  facts->name = "bytes";
  facts->numerics = numerics;
  facts->backend = "simulated";
  facts->tokenizer = std::make_shared<fakes::ByteTokenizer>();
  facts->scheduler = shape_.scheduler;
  loaded.facts = std::move(facts);
  return loaded;
}

void Node::receive(const transport::Peer& peer, const std::string& frame) {
  auto message = transport::decode(frame, transport::Limits());
  if (!message) throw Violation("a client sent what cannot be read: " + message.error().message);
  caf::anon_send(actors_.session, actors::inbound_atom::value,
                 actors::Inbound{peer, std::move(*message)});
}

void Node::advance(std::uint64_t now_ns) {
  actors_.coordinator().advance_time(std::chrono::nanoseconds(now_ns - now_ns_));
  now_ns_ = now_ns;
}

void Node::run(std::size_t messages) {
  auto& coordinator = actors_.coordinator();
  for (; messages > 0 && coordinator.has_job(); --messages) {
    // Actors run in any order; each takes its own messages in the order they came.
    std::swap(coordinator.jobs.front(), coordinator.jobs[random_.below(coordinator.jobs.size())]);
    coordinator.run_once();
    for (auto& peer : std::exchange(way_->lost, {}))
      caf::anon_send(actors_.session, actors::lost_atom::value, std::move(peer));
  }
  if (!way_->fault.empty()) throw Violation(way_->fault);
  if (!fault_.empty()) throw Violation(fault_);
  if (const auto status = actors_.status->now();
      !status && status.error().code != ErrorCode::unavailable)
    throw Violation("a node failed: " + status.error().message);
}

bool Node::busy() const { return device_ != nullptr && device_->busy(); }

void Node::complete_step() { device_->complete(); }

void Node::lose_device() {
  if (device_ != nullptr) device_->lose();
}

void Node::check_idle() {
  std::map<std::string, double> values;
  caf::scoped_actor self{actors_.system()};
  self->send(actors_.session, actors::stats_atom::value);
  actors_.coordinator().run();
  self->receive(
      [&](const actors::NamedValues& answer) {
        values = {answer.begin(), answer.end()};
      },
      [&](const caf::error&) { throw Violation("a node does not answer for stats"); });
  const auto demand = [&](const std::string& name, double value) {
    if (values[name] != value)
      throw Violation(fmt::format("{} is {} when all is over, not {}", name, values[name], value));
  };
  demand("engine.blocks_total", shape_.scheduler.blocks);
  demand("engine.blocks_free", shape_.scheduler.blocks);
  demand("engine.running", 0);
  demand("engine.waiting", 0);
  demand("session.open", 0);
  demand("streams.kept", 0);
  if (busy() || device_ == nullptr || !device_->all_closed())
    throw Violation("a slot is open when all is over");
}

namespace {

std::optional<engine::ConstrainedText> constrained(const engine::Constraint& constraint) {
  static const auto tokenizer = std::make_shared<const fakes::ByteTokenizer>();
  static engine::ConstraintCache cache(tokenizer);
  if (!constraint) return {};
  return engine::ConstrainedText(cache.get(constraint).value(), tokenizer, false);
}

Expected expect_choice(const transport::Submit& submit, std::uint32_t choice,
                       std::uint32_t context_tokens) {
  const fakes::ByteTokenizer tokenizer;
  engine::Request request;
  request.prompt = tokenizer.encode(std::get<std::string>(submit.prompt), false);
  request.sampling = submit.sampling;
  request.sampling.seed += choice;
  request.max_tokens = submit.max_tokens;
  request.stops = submit.stops;
  const engine::test::Alone alone =
      engine::test::run_alone(request, context_tokens, constrained(submit.constraint));
  Expected expected{alone.tokens, {}, alone.finish};
  for (const Token token : alone.tokens) expected.text += tokenizer.bytes(token);
  if (alone.text_bytes)
    expected.text.resize(*alone.text_bytes);
  else if (engine::ends_sequence(request.sampling.stop_tokens, request.sampling.min_tokens,
                                 static_cast<std::uint32_t>(alone.tokens.size() - 1),
                                 alone.tokens.back()))
    expected.text.pop_back();  // the stop token's own
  return expected;
}

}  // namespace

std::vector<Expected> expect(const transport::Submit& submit, std::uint32_t context_tokens) {
  std::vector<Expected> choices;
  for (std::uint32_t i = 0; i < submit.n; ++i)
    choices.push_back(expect_choice(submit, i, context_tokens));
  return choices;
}

}  // namespace sluice::simulate
