#pragma once
// The actor that owns one device.

#include <functional>
#include <memory>
#include <mutex>

#include "actors/actors.hpp"
#include "actors/load.hpp"

namespace sluice::actors {

/// Loads the engine, given where its steps' results go. Called on the executor's own thread.
using EngineLoader = std::function<Result<LoadedEngine>(kernels::Completion)>;

/// The same for one rank of a group; without a group, for all of the model.
using RankLoader = std::function<Result<LoadedEngine>(
    kernels::Completion, const std::shared_ptr<kernels::Communicator>&)>;

/// Both ways between a batcher and a backend, for as long as the executor owns it. Results go
/// straight to the batcher, on the backend's thread, as messages of whoever takes the plans: each
/// hop through the executor's thread would cost every token two switches of threads.
class StepRoute {
 public:
  void open(LoadedEngine& engine);
  /// Waits for a call that is on its way; from now on plans and results are dropped: nothing
  /// follows an executor's end.
  void close();

  /// The first plan's sender gets the results.
  void run(ExecutorActor from, ResultSink to, engine::StepPlan& plan);
  void sample(engine::StepMasks& masks);
  void send(kernels::StepResult&& result);

 private:
  std::mutex device_mutex_;
  LoadedEngine* engine_ = nullptr;
  bool routed_ = false;
  std::mutex result_mutex_;  ///< not the other: a backend may tell a result while it takes a plan
  ExecutorActor from_;
  ResultSink to_;
};

struct ExecutorState {
  static inline const char* name = "executor";
  ~ExecutorState() { route->close(); }  // before the backend finishes what it was given

  std::shared_ptr<StepRoute> route = std::make_shared<StepRoute>();
  LoadedEngine engine;
};

/// Tells `news` that it is `ready` with the engine's facts and who takes plans, or that it failed,
/// and then ends. That is an actor without a thread of its own where the backend queues steps. The
/// batcher is whoever sends the first plan.
ExecutorActor::behavior_type executor(ExecutorActor::stateful_pointer<ExecutorState> self,
                                      std::size_t engine, EngineLoader load, LoadNews news);

/// The one executor of `self`, which ends with it: on a thread of its own, for loading blocks and
/// steps must not wait, or under the coordinator of a test.
template <class Self>
ExecutorActor spawn_linked_executor(Self self, bool own_thread, const EngineLoader& load) {
  const LoadNews news(self);
  return own_thread ? self->template spawn<caf::detached + caf::linked>(executor, 0, load, news)
                    : self->template spawn<caf::linked>(executor, 0, load, news);
}

}  // namespace sluice::actors
