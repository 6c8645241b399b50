#pragma once
// Which rows run in the next step. Pure: time is an argument, nothing blocks, nothing is sent.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/step.hpp"
#include "kernels/core.hpp"
#include "model/tokenizer.hpp"

namespace sluice::engine {

struct SchedulerConfig {
  std::uint32_t slots = 64;            ///< sequences running at once
  std::uint32_t blocks = 0;            ///< KV pool
  std::uint32_t block_tokens = 16;
  std::uint32_t context_tokens = 0;
  std::uint32_t rows_max = 512;        ///< rows of a step: decode rows first, then prompt chunks
  std::uint32_t queue_max = 1024;      ///< waiting sequences; beyond: `overloaded`
  std::uint32_t steps_in_flight = 2;   ///< step n+1 is planned while step n runs
};

/// What an `apply` yields: per sequence its new tokens, and the receipts of those that ended.
struct Applied {
  std::vector<SequenceEvent> events;
  std::vector<FinishedSequence> finished;
};

/// Gauges for stats.
struct SchedulerStats {
  std::uint32_t waiting = 0;
  std::uint32_t running = 0;
  std::uint32_t blocks_free = 0;
  std::uint32_t blocks_total = 0;
  std::uint64_t steps = 0;
  std::uint64_t tokens = 0;
  std::uint64_t preemptions = 0;
};

class Scheduler {
 public:
  Scheduler(SchedulerConfig config, std::shared_ptr<const model::Tokenizer> tokenizer);
  ~Scheduler();

  /// Queues a sequence. `too_long`, or `overloaded` with a retry hint; never blocks or drops.
  Result<void> submit(Request request, Nanoseconds now);

  /// Ends a sequence: its event comes with the next `apply` or at once from `take_events`.
  /// Unknown ids are ignored. Takes effect in the next plan.
  void cancel(SequenceId id, FinishReason reason, Error why, Nanoseconds now);

  /// The next step, or none when nothing can run or enough steps are in flight.
  std::optional<StepPlan> plan(Nanoseconds now);

  /// Takes a step's result, oldest first. A failed step ends its sequences with its error.
  Applied apply(const StepResult& result, Nanoseconds now);

  /// Events that arose outside `apply`: cancelled or expired while waiting.
  Applied take_events();

  SchedulerStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::engine
