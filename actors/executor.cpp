#include "actors/executor.hpp"

#include <exception>
#include <utility>

namespace sluice::actors {

void ResultRoute::open(ExecutorActor from, ResultSink to) {
  const std::lock_guard lock(mutex_);
  from_ = std::move(from);
  to_ = std::move(to);
}

void ResultRoute::close() {
  ExecutorActor from;  // let go of outside the lock
  ResultSink to;
  const std::lock_guard lock(mutex_);
  std::swap(from, from_);
  std::swap(to, to_);
}

void ResultRoute::send(kernels::StepResult&& result) {
  const std::lock_guard lock(mutex_);
  if (to_) caf::send_as(from_, to_, std::move(result));
}

ExecutorActor::behavior_type executor(ExecutorActor::stateful_pointer<ExecutorState> self,
                                      std::size_t engine, EngineLoader load, LoadNews news) {
  self->set_exception_handler([](std::exception_ptr& thrown) -> caf::error {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& error) {
      return caf::make_error(caf::sec::runtime_error, error.what());
    }
  });
  auto loaded = load([route = self->state.route](kernels::StepResult&& result) {
    route->send(std::move(result));
  });
  if (!loaded) {
    self->send(news, ready_atom::value, EngineFailed{engine, loaded.error()});
    self->quit();
  } else {
    self->state.engine = std::move(*loaded);
    self->send(news, ready_atom::value, EngineReady{engine, self->state.engine.facts});
  }
  return {
      [self](run_atom, engine::StepPlan& plan) {
        if (!std::exchange(self->state.routed, true))
          self->state.route->open(self, caf::actor_cast<ResultSink>(self->current_sender()));
        self->state.engine.backend->submit(self->state.engine.program, plan.ticket,
                                           std::move(plan.batch));
      },
      [self](sample_atom, engine::StepMasks& masks) {
        self->state.engine.backend->sample(masks.ticket, std::move(masks.masks));
      },
  };
}

}  // namespace sluice::actors
