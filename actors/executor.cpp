#include "actors/executor.hpp"

#include <exception>
#include <utility>

namespace sluice::actors {

ExecutorActor::behavior_type executor(ExecutorActor::stateful_pointer<ExecutorState> self,
                                      std::size_t engine, EngineLoader load,
                                      SupervisorActor supervisor) {
  self->set_exception_handler([](std::exception_ptr& thrown) -> caf::error {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& error) {
      return caf::make_error(caf::sec::runtime_error, error.what());
    }
  });
  // The backend outlives no executor, but its last completion may come while the actor ends: a weak
  // handle then drops it.
  const caf::weak_intrusive_ptr<caf::actor_control_block> weak(self->ctrl());
  auto loaded = load([weak](kernels::StepResult&& result) {
    if (auto strong = weak.lock())
      caf::anon_send(caf::actor_cast<ExecutorActor>(strong), std::move(result));
  });
  if (!loaded) {
    self->send(supervisor, ready_atom::value, EngineFailed{engine, loaded.error()});
    self->quit();
  } else {
    self->state.engine = std::move(*loaded);
    self->send(supervisor, ready_atom::value, EngineReady{engine, self->state.engine.facts});
  }
  return {
      [self](run_atom, engine::StepPlan& plan) {
        self->state.batcher = caf::actor_cast<BatcherActor>(self->current_sender());
        self->state.engine.backend->submit(self->state.engine.program, plan.ticket,
                                           std::move(plan.batch));
      },
      [self](sample_atom, engine::StepMasks& masks) {
        self->state.engine.backend->sample(masks.ticket, std::move(masks.masks));
      },
      [self](engine::StepResult& result) { self->send(self->state.batcher, std::move(result)); },
  };
}

}  // namespace sluice::actors
