#include "actors/supervisor.hpp"

#include <algorithm>
#include <utility>

#include "actors/batcher.hpp"
#include "actors/streamer.hpp"
#include "actors/tokenizer.hpp"

namespace sluice::actors {

namespace {

using Self = SupervisorActor::stateful_pointer<SupervisorState>;

/// A model that loads and then loses its executor this often has a fault that reloading does not
/// mend.
constexpr std::uint32_t restarts_max = 3;

/// How long clients of a lost engine are asked to wait before they submit again.
constexpr std::uint32_t retry_after_loss_ms = 1000;

void start_engine(Self self, std::size_t index) {
  auto& setup = self->state.setup;
  const SupervisorActor me = self;
  auto& engine = self->state.engines[index];
  engine.executor =
      setup.detach_executors
          ? self->spawn<caf::detached + caf::monitored>(executor, index, setup.engines[index], me)
          : self->spawn<caf::monitored>(executor, index, setup.engines[index], me);
}

void start_front(Self self) {
  auto& setup = self->state.setup;
  auto& front = self->state.front;
  front.publish = setup.publish;
  for (std::uint32_t i = 0; i < std::max(1U, setup.tokenizers); ++i)
    front.tokenizers.push_back(self->spawn<caf::monitored>(tokenizer, setup.session));
  for (std::uint32_t i = 0; i < std::max(1U, setup.streamers); ++i)
    front.streamers.push_back(
        self->spawn<caf::monitored>(streamer, setup.outbox, setup.stream, setup.session));
  self->monitor(setup.session);
  self->send(setup.session, ready_atom::value, front);
}

void serve(Self self, EngineReady& ready) {
  auto& state = self->state;
  auto& engine = state.engines[ready.engine];
  engine.facts = ready.facts;
  engine.batcher = self->spawn<caf::monitored>(batcher, ready.facts, engine.executor);
  self->send(state.setup.session, engine_atom::value, ready.facts, engine.batcher);
  state.setup.log->node("engine_ready", ready.facts->name);
}

void fail_node(Self self, Error why) {
  self->state.setup.log->node_failed("node_failed", why);
  self->state.setup.status->set_failed(std::move(why));
}

/// Executor and batcher live and die together; called once for each.
void lose_engine(Self self, SupervisorState::Engine& engine, std::size_t index) {
  auto& state = self->state;
  const Error why{ErrorCode::unavailable, "the engine was lost; submit again when it is back",
                  retry_after_loss_ms};
  if (engine.executor) self->send_exit(engine.executor, caf::exit_reason::kill);
  if (engine.batcher) {  // its own end comes first, so that nothing of it follows the loss
    self->send_exit(engine.batcher, caf::exit_reason::kill);
    return;
  }
  if (engine.executor || engine.facts == nullptr) return;
  self->send(state.setup.session, engine_atom::value, std::exchange(engine.facts, nullptr), why);
  if (++engine.restarts > restarts_max)
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
    const bool executor_down = engine.executor && engine.executor.address() == message.source;
    const bool batcher_down = engine.batcher && engine.batcher.address() == message.source;
    if (!executor_down && !batcher_down) continue;
    if (engine.executor && engine.batcher)  // the first to end has the cause
      state.setup.log->node_failed(
          "engine_lost", {ErrorCode::internal, self->system().render(message.reason), 0});
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
  for (auto& engine : state.engines) {
    if (engine.batcher) self->send_exit(engine.batcher, caf::exit_reason::user_shutdown);
    if (engine.executor) self->send_exit(engine.executor, caf::exit_reason::user_shutdown);
  }
  for (auto& each : state.front.tokenizers) self->send_exit(each, caf::exit_reason::user_shutdown);
  for (auto& each : state.front.streamers) self->send_exit(each, caf::exit_reason::user_shutdown);
  self->send_exit(state.setup.session, caf::exit_reason::user_shutdown);
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
  return {
      [self](ready_atom, EngineReady& ready) { serve(self, ready); },
      [self](ready_atom, const EngineFailed& failed) { fail_node(self, failed.error); },
  };
}

}  // namespace sluice::actors
