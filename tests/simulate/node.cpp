#include "tests/simulate/node.hpp"

#include <algorithm>

#include "tests/simulate/parts.hpp"

namespace sluice::simulate {

namespace {

/// As often as a simulated hour brings it about: no node gives itself up here.
constexpr std::uint32_t restarts_max = 1000;

transport::SessionConfig session_config(const NodeShape& shape) {
  transport::SessionConfig config;
  config.welcome.window_tokens = shape.stream.window_tokens;
  return config;
}

}  // namespace

struct Node::Inside {
  explicit Inside(Wire wire) : way(std::make_shared<Way>(std::move(wire))) {}

  Trouble trouble;
  Device* device = nullptr;  // the engine's present one
  std::shared_ptr<Way> way;
};

Node::Node(const NodeShape& shape, std::uint64_t seed, std::uint64_t now_ns, Wire wire)
    : shape_(shape),
      random_{std::mt19937_64(seed)},
      now_ns_(now_ns),
      inside_(std::make_unique<Inside>(std::move(wire))),
      actors_({inside_->way,
               [this](kernels::Completion completion) -> Result<actors::LoadedEngine> {
                 return load_bytes(
                     shape_, std::make_unique<Device>(shape_, random_, inside_->trouble,
                                                      inside_->device, std::move(completion)));
               },
               shape.stream, session_config(shape), restarts_max}) {}

Node::~Node() { inside_->way->dead = true; }

bool Node::steps_failed() const { return inside_->trouble.steps_failed; }

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
    for (auto& peer : std::exchange(inside_->way->lost, {}))
      caf::anon_send(actors_.session, actors::lost_atom::value, std::move(peer));
  }
  if (!inside_->way->fault.empty()) throw Violation(inside_->way->fault);
  if (!inside_->trouble.fault.empty()) throw Violation(inside_->trouble.fault);
  if (const auto status = actors_.status->now();
      !status && status.error().code != ErrorCode::unavailable)
    throw Violation("a node failed: " + status.error().message);
}

bool Node::busy() const { return inside_->device != nullptr && inside_->device->busy(); }

void Node::complete_step() { inside_->device->complete(); }

void Node::lose_device() {
  if (inside_->device != nullptr) inside_->device->lose();
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
  if (busy() || inside_->device == nullptr || !inside_->device->all_closed())
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
