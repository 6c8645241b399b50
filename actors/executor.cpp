#include "actors/executor.hpp"

#include <exception>
#include <utility>

namespace sluice::actors {

void StepRoute::open(LoadedEngine& engine) {
  const std::lock_guard lock(device_mutex_);
  engine_ = &engine;
}

void StepRoute::close() {
  {
    const std::lock_guard lock(device_mutex_);
    engine_ = nullptr;
  }
  ExecutorActor from;  // let go of outside the lock
  ResultSink to;
  const std::lock_guard lock(result_mutex_);
  std::swap(from, from_);
  std::swap(to, to_);
}

void StepRoute::run(ExecutorActor from, ResultSink to, engine::StepPlan& plan) {
  const std::lock_guard lock(device_mutex_);
  if (engine_ == nullptr) return;
  // Not for every plan: a result's sender, once the batcher is awake, may wait for a core.
  if (!std::exchange(routed_, true)) {
    const std::lock_guard result_lock(result_mutex_);
    from_ = std::move(from);
    to_ = std::move(to);
  }
  engine_->backend->submit(engine_->program, plan.ticket, std::move(plan.batch));
}

void StepRoute::sample(engine::StepMasks& masks) {
  const std::lock_guard lock(device_mutex_);
  if (engine_ != nullptr) engine_->backend->sample(masks.ticket, std::move(masks.masks));
}

void StepRoute::send(kernels::StepResult&& result) {
  const std::lock_guard lock(result_mutex_);
  if (to_) caf::send_as(from_, to_, std::move(result));
}

namespace {

/// The reason of an actor's end: a device is lost by an exception.
caf::error say_what(std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    return caf::make_error(caf::sec::runtime_error, error.what());
  }
}

ExecutorActor::behavior_type takes_steps(ExecutorActor::pointer self,
                                         std::shared_ptr<StepRoute> route) {
  self->set_exception_handler(say_what);
  return {
      [self, route](run_atom, engine::StepPlan& plan) {
        route->run(self, caf::actor_cast<ResultSink>(self->current_sender()), plan);
      },
      [route](sample_atom, engine::StepMasks& masks) { route->sample(masks); },
  };
}

}  // namespace

ExecutorActor::behavior_type executor(ExecutorActor::stateful_pointer<ExecutorState> self,
                                      std::size_t engine, EngineLoader load, LoadNews news) {
  self->set_exception_handler(say_what);
  auto loaded = load([route = self->state.route](kernels::StepResult&& result) {
    route->send(std::move(result));
  });
  if (!loaded) {
    self->send(news, ready_atom::value, EngineFailed{engine, loaded.error()});
    self->quit();
  } else {
    self->state.engine = std::move(*loaded);
    self->state.route->open(self->state.engine);
    const bool queues = self->state.engine.backend->device().queues_steps;
    const ExecutorActor steps =
        queues ? self->spawn<caf::linked>(takes_steps, self->state.route) : ExecutorActor(self);
    self->send(news, ready_atom::value, EngineReady{engine, self->state.engine.facts, steps});
  }
  return takes_steps(self, self->state.route);
}

}  // namespace sluice::actors
