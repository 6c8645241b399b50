#include "actors/supervisor.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "actors/batcher.hpp"
#include "actors/streamer.hpp"
#include "actors/tokenizer.hpp"

namespace sluice::actors {

namespace {

using Self = SupervisorActor::stateful_pointer<SupervisorState>;
using Engine = SupervisorState::Engine;

/// A model that loads and then loses its executor this often has a fault that reloading does not
/// mend.
constexpr std::uint32_t restarts_max = 3;

/// How long clients of a lost engine are asked to wait before they submit again.
constexpr std::uint32_t retry_after_loss_ms = 1000;

/// The same where another node may have the engine, or has it again in a moment.
constexpr std::uint32_t retry_elsewhere_ms = 200;

/// How long to wait before a part is looked for again where it was offered and then not given.
constexpr std::chrono::milliseconds look_again{200};

bool offers(const PeerOffers& peer, const std::string& service, const std::string& engine) {
  return std::ranges::any_of(peer.offers, [&](const transport::Offer& offer) {
    return offer.service == service && offer.engine == engine;
  });
}

transport::OpenChannel channel_of(const std::string& service, const std::string& engine) {
  transport::OpenChannel what;
  what.service = service;
  what.engine = engine;
  return what;
}

/// Takes what peers offer and this node lacks.
void look(Self self) {
  auto& state = self->state;
  const auto& setup = state.setup;
  const LoadNews me = SupervisorActor(self);
  for (std::size_t i = 0; i < state.engines.size(); ++i) {
    auto& engine = state.engines[i];
    const auto& own = setup.engines[i];
    for (const auto& [link, peer] : state.offers) {
      if (own.batcher && !own.executor && !engine.executor && offers(peer, "executor", own.name))
        engine.executor = self->spawn<caf::monitored>(
            executor_proxy, i, link, channel_of("executor", own.name), own.facts, setup.peers, me);
      if (!own.batcher && setup.session && !engine.replicas.contains(link) &&
          offers(peer, "batcher", own.name))
        engine.replicas[link].batcher = self->spawn<caf::monitored>(
            batcher_proxy, i, link, channel_of("batcher", own.name), own.facts, setup.peers, me);
      if (state.tokenizer_proxy && offers(peer, "tokenizer", own.name))
        self->send(state.tokenizer_proxy, peer_atom::value, own.name, link);
    }
  }
}

void look_later(Self self) {
  if (std::exchange(self->state.looking, true)) return;
  self->delayed_send(self, look_again, tick_atom::value);
}

void start_engine(Self self, std::size_t index) {
  auto& setup = self->state.setup;
  const auto& own = setup.engines[index];
  if (!own.batcher || !own.executor) return look_later(self);
  const LoadNews me = SupervisorActor(self);
  self->state.engines[index].executor =
      setup.own_threads
          ? self->spawn<caf::detached + caf::monitored>(executor, index, own.executor, me)
          : self->spawn<caf::monitored>(executor, index, own.executor, me);
}

void start_front(Self self) {
  auto& setup = self->state.setup;
  if (!setup.session) return;
  auto& front = self->state.front;
  front.publish = setup.publish;
  for (std::uint32_t i = 0; i < setup.tokenizers; ++i)
    front.tokenizers.push_back(
        setup.own_threads ? self->spawn<caf::detached + caf::monitored>(tokenizer, setup.session)
                          : self->spawn<caf::monitored>(tokenizer, setup.session));
  if (setup.tokenizers == 0) {
    self->state.tokenizer_proxy =
        self->spawn<caf::monitored>(tokenizer_proxy, setup.session, setup.peers);
    front.tokenizers.emplace_back(self->state.tokenizer_proxy);
  }
  for (std::uint32_t i = 0; i < std::max(1U, setup.streamers); ++i)
    front.streamers.push_back(
        self->spawn<caf::monitored>(streamer, setup.outbox, setup.stream, setup.session));
  self->monitor(setup.session);
  self->send(setup.session, ready_atom::value, front);
}

/// Without a front nobody else says so: ready when every batcher of this node serves.
void settle(Self self) {
  auto& state = self->state;
  if (state.setup.session) return;
  for (std::size_t i = 0; i < state.engines.size(); ++i)
    if (state.setup.engines[i].batcher && state.engines[i].facts == nullptr) return;
  state.setup.status->set_ready();
}

void serve(Self self, EngineReady& ready) {
  auto& state = self->state;
  auto& engine = state.engines[ready.engine];
  const auto sender = self->current_sender();
  for (auto& [link, replica] : engine.replicas) {
    if (replica.batcher != sender) continue;
    replica.facts = ready.facts;
    self->send(state.setup.session, engine_atom::value, ready.facts, BatcherActor(replica.batcher));
    state.setup.log->node("engine_joined", ready.facts->name);
    return;
  }
  if (engine.executor != sender) return;  // lost meanwhile
  engine.facts = ready.facts;
  engine.batcher = self->spawn<caf::monitored>(batcher, ready.facts, engine.executor);
  if (state.setup.session)
    self->send(state.setup.session, engine_atom::value, ready.facts, engine.batcher);
  if (state.host) self->send(state.host, engine_atom::value, ready.facts, engine.batcher);
  state.setup.log->node("engine_ready", ready.facts->name);
  settle(self);
}

void fail_node(Self self, Error why) {
  self->state.setup.log->node_failed("node_failed", why);
  self->state.setup.status->set_failed(std::move(why));
}

/// Its own model cannot be loaded: nothing will mend that. What another node says may change.
void fail_load(Self self, const EngineFailed& failed) {
  if (self->state.setup.engines[failed.engine].executor) return fail_node(self, failed.error);
  self->state.setup.log->node_failed("engine_not_joined", failed.error);
}

void lose(Self self, const EngineFactsPtr& facts, std::uint32_t retry_ms) {
  auto& state = self->state;
  const Error why{ErrorCode::unavailable, "the engine was lost; submit again when it is back",
                  retry_ms};
  if (state.setup.session) self->send(state.setup.session, engine_atom::value, facts, why);
  if (state.host) self->send(state.host, engine_atom::value, facts, why);
}

/// Executor and batcher live and die together; called once for each.
void lose_engine(Self self, Engine& engine, std::size_t index) {
  const bool remote = !self->state.setup.engines[index].executor;
  if (engine.executor) self->send_exit(engine.executor, caf::exit_reason::kill);
  if (engine.batcher) {  // its own end comes first, so that nothing of it follows the loss
    self->send_exit(engine.batcher, caf::exit_reason::kill);
    return;
  }
  if (engine.executor) return;
  if (engine.facts != nullptr)
    lose(self, std::exchange(engine.facts, nullptr),
         remote ? retry_elsewhere_ms : retry_after_loss_ms);
  else if (!remote)
    return;  // it never loaded, which the node has heard
  if (!remote && ++engine.restarts > restarts_max)
    return fail_node(self, {ErrorCode::internal,
                            fmt::format("engine {} was lost {} times: see the log for the cause",
                                        index, engine.restarts)});
  start_engine(self, index);
}

void down(Self self, const caf::down_msg& message) {
  auto& state = self->state;
  if (state.stopping) return;
  for (std::size_t i = 0; i < state.engines.size(); ++i) {
    auto& engine = state.engines[i];
    for (auto& [link, replica] : engine.replicas) {
      if (replica.batcher.address() != message.source) continue;
      if (replica.facts) lose(self, replica.facts, retry_elsewhere_ms);
      engine.replicas.erase(link);
      return look_later(self);
    }
    const bool executor_down = engine.executor && engine.executor.address() == message.source;
    const bool batcher_down = engine.batcher && engine.batcher.address() == message.source;
    if (!executor_down && !batcher_down) continue;
    if (engine.executor && engine.batcher)  // the first to end has the cause
      state.setup.log->node_failed("engine_lost",
                                   {ErrorCode::internal, self->system().render(message.reason), 0});
    if (executor_down) engine.executor = nullptr;
    if (batcher_down) engine.batcher = nullptr;
    return lose_engine(self, engine, i);
  }
  fail_node(self, {ErrorCode::internal, fmt::format("a front actor ended ({}): restart the node",
                                                    self->system().render(message.reason))});
}

void stop(Self self, const caf::error& reason) {
  auto& state = self->state;
  state.stopping = true;
  const auto end = [self](const auto& actor) {
    if (actor) self->send_exit(actor, caf::exit_reason::user_shutdown);
  };
  for (auto& engine : state.engines) {
    end(engine.batcher);
    end(engine.executor);
    for (auto& [link, replica] : engine.replicas) end(replica.batcher);
  }
  for (auto& each : state.front.tokenizers) end(each);
  for (auto& each : state.front.streamers) end(each);
  end(state.host);
  end(state.setup.session);
  self->quit(reason);
}

}  // namespace

SupervisorActor::behavior_type supervisor(Self self, SupervisorSetup setup) {
  self->state.setup = std::move(setup);
  self->state.engines.resize(self->state.setup.engines.size());
  self->set_down_handler([self](const caf::down_msg& message) { down(self, message); });
  self->set_exit_handler([self](const caf::exit_msg& message) { stop(self, message.reason); });
  start_front(self);
  for (std::size_t i = 0; i < self->state.engines.size(); ++i) start_engine(self, i);
  settle(self);
  return {
      [self](ready_atom, EngineReady& ready) { serve(self, ready); },
      [self](ready_atom, const EngineFailed& failed) { fail_load(self, failed); },
      [self](peer_atom, PeerOffers& peer) {
        const auto link = peer.link;
        if (peer.offers.empty())
          self->state.offers.erase(link);
        else
          self->state.offers.insert_or_assign(link, std::move(peer));
        look(self);
      },
      [self](ready_atom, const HostActor& host) {
        auto& state = self->state;
        state.host = host;
        self->monitor(host);
        for (const auto& engine : state.engines)
          if (engine.facts) self->send(host, engine_atom::value, engine.facts, engine.batcher);
      },
      [self](tick_atom) {
        self->state.looking = false;
        look(self);
      },
  };
}

}  // namespace sluice::actors
