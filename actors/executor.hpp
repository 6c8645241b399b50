#pragma once
// The actor that owns one device.

#include <functional>
#include <memory>

#include "actors/actors.hpp"
#include "actors/load.hpp"

namespace sluice::actors {

/// Loads the engine, given where its steps' results go. Called on the executor's own thread.
using EngineLoader = std::function<Result<LoadedEngine>(kernels::Completion)>;

struct ExecutorState {
  static inline const char* name = "executor";
  LoadedEngine engine;
  BatcherActor batcher;
};

/// Tells the supervisor `ready` with the engine's facts, or that it failed, and then ends.
/// The batcher is whoever sends the first plan.
ExecutorActor::behavior_type executor(ExecutorActor::stateful_pointer<ExecutorState> self,
                                      std::size_t engine, EngineLoader load,
                                      SupervisorActor supervisor);

}  // namespace sluice::actors
