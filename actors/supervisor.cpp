#include "actors/supervisor.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "actors/batcher.hpp"
#include "actors/gather.hpp"
#include "actors/streamer.hpp"
#include "actors/tokenizer.hpp"

namespace sluice::actors {

namespace {

using Self = SupervisorActor::stateful_pointer<SupervisorState>;
using Engine = SupervisorState::Engine;

/// How long clients of a lost engine are asked to wait before they submit again.
constexpr std::uint32_t retry_after_loss_ms = 1000;

/// The same where another node may have the engine, or has it again in a moment.
constexpr std::uint32_t retry_elsewhere_ms = 200;

/// How long to wait before a part is looked for again where it was offered and then not given.
constexpr std::chrono::milliseconds look_again{200};

/// What was offered and could not be started (ranks do not reach each other, say) is not started
/// again at once, though it is offered at once: the pause doubles up to here.
constexpr std::chrono::milliseconds pause_max{500};

bool offers(const PeerOffers& peer, const std::string& service, const std::string& engine) {
  return std::ranges::any_of(peer.offers, [&](const transport::Offer& offer) {
    return offer.service == service && offer.engine == engine;
  });
}

/// In another process: lost and found as those please.
bool is_remote(const EngineSetup& engine) { return !engine.executor || engine.ranks > 1; }

void start_group(Self self, std::size_t index, std::vector<RankNode> others) {
  auto& state = self->state;
  const auto& setup = state.setup;
  const auto& own = setup.engines[index];
  state.epoch = std::max(state.epoch, setup.epoch) + 1;
  const LoadNews me = SupervisorActor(self);
  state.engines[index].executor = self->spawn<caf::monitored>(
      group, GroupSetup{index, own.name, state.epoch, own.executor, own.facts, std::move(others),
                        setup.collectives, setup.group_start_ms, setup.step_ms, setup.peers, me,
                        setup.log, setup.own_threads, setup.prepare_group});
}

/// An executor for an engine of this node, once enough are offered.
void find_executor(Self self, std::size_t index) {
  auto& state = self->state;
  const auto& own = state.setup.engines[index];
  auto& engine = state.engines[index];
  std::vector<RankNode> found;
  const std::size_t wanted = own.ranks - (own.executor ? 1 : 0);
  for (const auto& [link, peer] : state.offers)
    if (found.size() < wanted && offers(peer, "executor", own.name))
      found.push_back({link, peer.node});
  if (found.size() < wanted) {
    if (!std::exchange(engine.waits, true))
      state.setup.log->node("engine_waits",
                            fmt::format("engine {}: {} of {} executors on other nodes are offered",
                                        own.name, found.size(), wanted));
    return;
  }
  engine.waits = false;
  engine.ending = false;
  if (own.ranks > 1) return start_group(self, index, std::move(found));
  const LoadNews me = SupervisorActor(self);
  engine.executor =
      self->spawn<caf::monitored>(executor_proxy, ExecutorProxySetup{index,
                                                                     found.front().link,
                                                                     {0, "executor", own.name},
                                                                     own.facts,
                                                                     state.setup.step_ms,
                                                                     state.setup.peers,
                                                                     me,
                                                                     state.setup.log});
}

/// Takes what peers offer and this node lacks.
void look(Self self) {
  auto& state = self->state;
  const auto& setup = state.setup;
  const LoadNews me = SupervisorActor(self);
  for (std::size_t i = 0; i < state.engines.size(); ++i) {
    auto& engine = state.engines[i];
    const auto& own = setup.engines[i];
    if (own.batcher && is_remote(own) && !engine.executor && !engine.failed &&
        self->clock().now() >= engine.rests_until)
      find_executor(self, i);
    for (const auto& [link, peer] : state.offers) {
      if (!own.batcher && setup.session && !engine.replicas.contains(link) &&
          offers(peer, "batcher", own.name))
        engine.replicas[link].batcher = self->spawn<caf::monitored>(
            batcher_proxy, i, link, transport::OpenChannel{0, "batcher", own.name}, own.facts,
            setup.peers, me);
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
  if (!own.batcher || is_remote(own)) return look_later(self);
  const LoadNews me = SupervisorActor(self);
  auto& engine = self->state.engines[index];
  engine.ending = false;
  const EngineLoader load = load_rank(own.executor);
  engine.executor = setup.own_threads
                        ? self->spawn<caf::detached + caf::monitored>(executor, index, load, me)
                        : self->spawn<caf::monitored>(executor, index, load, me);
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

void tell_session(Self self, const Engine& engine, bool there) {
  const auto& session = self->state.setup.session;
  if (session) self->send(session, engine_atom::value, engine.facts, there);
}

void serve(Self self, Engine& engine, EngineFactsPtr facts) {
  auto& state = self->state;
  engine.facts = std::move(facts);
  engine.batcher = self->spawn<caf::monitored>(batcher, engine.facts, engine.steps);
  if (state.setup.session)
    self->send(state.setup.session, engine_atom::value, engine.facts, EngineActor(engine.batcher));
  if (state.host)
    self->send(state.host, engine_atom::value, engine.facts, EngineActor(engine.batcher));
  state.setup.log->node("engine_ready", engine.facts->name);
  settle(self);
}

void fail_node(Self self, Error why) {
  self->state.setup.log->node_failed("node_failed", why);
  self->state.setup.status->set_failed(std::move(why));
}

void fail_engine(Self self, Engine& engine, Error why) {
  engine.failed = true;
  if (engine.batcher) self->send_exit(engine.batcher, caf::exit_reason::kill);
  fail_node(self, std::move(why));
}

/// Streams that wait would go on here as if nothing had happened.
bool can_replace(const EngineFacts& lost, const EngineFacts& found) {
  const auto& had = lost.scheduler;
  const auto& has = found.scheduler;
  return found.numerics == lost.numerics && has.slots >= had.slots && has.blocks >= had.blocks &&
         has.rows_max >= had.rows_max && has.context_tokens >= had.context_tokens &&
         has.block_tokens == had.block_tokens && has.paths_equal == had.paths_equal;
}

void ready(Self self, const EngineReady& ready) {
  auto& state = self->state;
  auto& engine = state.engines[ready.engine];
  const auto sender = self->current_sender();
  for (auto& [link, replica] : engine.replicas) {
    if (replica.batcher != sender) continue;
    replica.facts = ready.facts;
    self->send(state.setup.session, engine_atom::value, ready.facts, EngineActor(replica.batcher));
    state.setup.log->node("engine_joined", ready.facts->name);
    return;
  }
  if (engine.executor != sender || engine.ending || engine.failed) return;
  engine.pause = {};
  engine.steps = ready.steps;
  if (!engine.batcher) return serve(self, engine, ready.facts);
  if (can_replace(*engine.facts, *ready.facts)) {
    self->send(engine.batcher, engine_atom::value, engine.steps);
    tell_session(self, engine, true);
    state.setup.log->node("engine_replaced", engine.facts->name);
    return;
  }
  state.setup.log->node_warning("engine_changed",
                                "it came back with other numerics or a smaller pool: streams end");
  engine.next = ready.facts;
  self->send_exit(engine.batcher, caf::exit_reason::kill);
}

/// Its own model cannot be loaded: nothing will mend that. What another node says may change.
void fail_load(Self self, const EngineFailed& failed) {
  auto& state = self->state;
  auto& engine = state.engines[failed.engine];
  const auto code = failed.error.code;
  const bool passes = code == ErrorCode::unavailable || code == ErrorCode::deadline;
  if (!is_remote(state.setup.engines[failed.engine]) ||
      (state.setup.engines[failed.engine].batcher && engine.facts == nullptr && !passes))
    return fail_engine(self, engine, failed.error);
  state.setup.log->node_failed("engine_not_joined", failed.error);
  if (!state.setup.engines[failed.engine].batcher) return;
  engine.pause = std::clamp(engine.pause * 2, look_again, pause_max);
  engine.rests_until = self->clock().now() + engine.pause;
  self->delayed_send(self, engine.pause, tick_atom::value);
}

void lose(Self self, const EngineFactsPtr& facts, std::uint32_t retry_ms) {
  auto& state = self->state;
  const Error why{ErrorCode::unavailable, "the engine was lost; submit again when it is back",
                  retry_ms};
  if (state.setup.session) self->send(state.setup.session, engine_atom::value, facts, why);
  if (state.host) self->send(state.host, engine_atom::value, facts, why);
}

/// The batcher keeps what streams need to go on with the next.
void lose_executor(Self self, Engine& engine, std::size_t index) {
  auto& state = self->state;
  const bool remote = is_remote(state.setup.engines[index]);
  engine.executor = nullptr;
  engine.steps = nullptr;
  engine.next = nullptr;
  if (engine.failed) return;
  if (!engine.batcher && !engine.ending && !remote)
    return fail_engine(self, engine,
                       {ErrorCode::internal,
                        "an executor ended while it loaded its model: see the "
                        "log for the cause"});
  if (engine.batcher) {
    self->send(engine.batcher, lost_atom::value);
    tell_session(self, engine, false);
  }
  if (remote) return look_later(self);
  if (engine.restarts == state.setup.restarts_max)
    return fail_engine(
        self, engine,
        {ErrorCode::internal, fmt::format("engine {} was lost {} times: see the log for the cause",
                                          index, engine.restarts + 1)});
  ++engine.restarts;
  start_engine(self, index);
}

/// Its streams are lost with it. Nothing of it follows: whoever hears of the loss hears it last.
void lose_batcher(Self self, Engine& engine) {
  engine.batcher = nullptr;
  lose(self, std::exchange(engine.facts, nullptr), retry_after_loss_ms);
  if (engine.failed) return;
  if (engine.next) return serve(self, engine, std::exchange(engine.next, nullptr));
  engine.ending = true;
  if (engine.executor)
    self->send_exit(engine.executor, caf::exit_reason::kill);
  else
    look_later(self);
}

void down(Self self, const caf::down_msg& message) {
  auto& state = self->state;
  if (state.stopping) return;
  const std::string reason = self->system().render(message.reason);
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
    if (!engine.failed && !engine.ending && !engine.next)  // else it was ended by us
      state.setup.log->node_failed("engine_lost", {ErrorCode::internal, reason, 0});
    return executor_down ? lose_executor(self, engine, i) : lose_batcher(self, engine);
  }
  fail_node(self, {ErrorCode::internal,
                   fmt::format("a front actor ended ({}): restart the node", reason)});
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
      [self](ready_atom, const EngineReady& news) { ready(self, news); },
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
          if (engine.facts)
            self->send(host, engine_atom::value, engine.facts, EngineActor(engine.batcher));
      },
      [self](stats_atom) -> caf::result<NamedValues> {
        auto promise = self->make_response_promise<NamedValues>();
        const auto& more = self->state.setup.more_stats;
        const auto gathering = std::make_shared<Gathering>(
            more ? more() : NamedValues(), [promise](const transport::Values& sums) mutable {
              promise.deliver(NamedValues(sums.begin(), sums.end()));
            });
        for (const auto& engine : self->state.engines)
          if (engine.batcher) gathering->ask(self, engine.batcher);
        gathering->asked_all();
        return promise;
      },
      [self](tick_atom) {
        self->state.looking = false;
        look(self);
      },
  };
}

}  // namespace sluice::actors
