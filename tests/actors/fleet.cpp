#include "tests/actors/fleet.hpp"

#include <boost/test/unit_test.hpp>

#include "tests/fakes/byte_facts.hpp"

namespace sluice::fakes {
namespace {

bool plays(const std::string& roles, const std::string& role) {
  return roles.find(role) != std::string::npos;
}

}  // namespace

void FleetPeers::post(transport::LinkId link, std::string frame) {
  const auto other = others.find(link);
  if (other == others.end()) return;
  const auto taken = other->second->receive(link, frame);
  BOOST_REQUIRE_MESSAGE(taken.has_value(), taken.error().message);
}

Fleet::~Fleet() {
  for (auto& node : nodes_)
    for (auto& other : nodes_) cut(*node, *other);
  for (auto& node : nodes_) {
    caf::anon_send_exit(node->supervisor, caf::exit_reason::user_shutdown);
    run();
    node->peers->serve({});
  }
}

FleetNode& Fleet::add(const std::string& name, const std::string& roles) {
  nodes_.push_back(std::make_unique<FleetNode>());
  auto& node = *nodes_.back();
  node.name = name;
  actors::NodeConfig quiet;
  quiet.log_level = "off";
  auto log = *actors::RequestLog::open(quiet);
  const actors::RankLoader load =
      [this, &node](kernels::Completion completion,
                    const std::shared_ptr<kernels::Communicator>&) -> Result<actors::LoadedEngine> {
    ++node.loads;
    if (node.failing_loads > 0) {
      --node.failing_loads;
      return fail(ErrorCode::unavailable, "the device is not there yet");
    }
    actors::LoadedEngine loaded;
    auto backend = std::make_unique<bench::InstantBackend>(std::move(completion), hold_);
    node.backend = backend.get();
    loaded.backend = std::move(backend);
    auto facts = byte_facts();
    facts->numerics = "00112233445566778899aabbccddeeff";
    facts->backend = "instant";
    facts->scheduler = {.slots = 4,
                        .blocks = 64,
                        .block_tokens = 16,
                        .context_tokens = 256,
                        .rows_max = 64,
                        .queue_max = 8};
    facts->scheduler.paths_equal = true;
    loaded.facts = std::move(facts);
    return loaded;
  };
  const actors::FactsLoader facts = [] {
    return Result<std::shared_ptr<actors::EngineFacts>>(byte_facts());
  };
  const bool batcher = plays(roles, "engine"), computes = plays(roles, "executor");
  actors::SupervisorSetup setup;
  setup.engines.push_back({"bytes", batcher, computes ? load : nullptr, facts});
  if (plays(roles, "front")) {
    node.session =
        system_.spawn(actors::session, actors::SessionSetup{node.outbox, {}, 1, log, node.status});
    setup.session = node.session;
  }
  setup.outbox = node.outbox;
  setup.publish = "inproc://published";
  setup.tokenizers = plays(roles, "tokenizer") ? 1 : 0;
  setup.streamers = 2;
  setup.log = log;
  setup.status = node.status;
  setup.peers = node.peers;
  setup.own_threads = false;
  node.supervisor = system_.spawn(actors::supervisor, std::move(setup));
  actors::HostSetup hosted;
  hosted.peers = node.peers;
  hosted.engines.push_back(
      {"bytes", facts, plays(roles, "tokenizer"), computes && !batcher ? load : nullptr});
  hosted.news = node.supervisor;
  hosted.log = log;
  hosted.group_start_ms = 1000;
  hosted.own_threads = false;
  node.peers->serve(system_.spawn(actors::host, std::move(hosted)));
  caf::anon_send(node.supervisor, actors::ready_atom::value, node.peers->host());
  run();
  return node;
}

void Fleet::connect(FleetNode& dialer, FleetNode& listener) {
  const auto link = ++last_link_;
  dialer.peers->others[link] = listener.peers.get();
  listener.peers->others[link] = dialer.peers.get();
  dialer.peers->up({link, {listener.name, 1}, 0});
  listener.peers->up({link, {dialer.name, 1}, std::nullopt});
  run();
}

void Fleet::cut(FleetNode& a, FleetNode& b) {
  const Error why{ErrorCode::unavailable, "the link was cut", 0};
  for (const auto& [self, other] : {std::pair{&a, &b}, {&b, &a}}) {
    std::vector<transport::LinkId> links;
    for (const auto& [link, peer] : self->peers->others)
      if (peer == other->peers.get()) links.push_back(link);
    for (const auto link : links) {
      self->peers->others.erase(link);
      self->peers->down({link, other->name, why});
    }
  }
  run();
}

actors::ChannelEnd Fleet::keep(std::vector<transport::NodeMessage>& heard, bool& closed) {
  return system_.spawn([&heard, &closed]() -> actors::ChannelEnd::behavior_type {
    return {
        [&heard](actors::channel_atom, const actors::ChannelRef&, transport::NodeMessage& message) {
          heard.push_back(std::move(message));
        },
        [&closed](actors::lost_atom, const actors::ChannelRef&, const Error&) { closed = true; },
    };
  });
}

bool Fleet::step(FleetNode& node) {
  const bool released = node.backend != nullptr && node.backend->release();
  run();
  return released;
}

void Fleet::say(FleetNode& node, const std::string& peer, transport::Message message) {
  caf::anon_send(node.session, actors::inbound_atom::value,
                 actors::Inbound{peer, std::move(message)});
  run();
}

}  // namespace sluice::fakes
