#pragma once
// Which rows run in the next step. Pure: time is an argument, nothing blocks, nothing is sent.
//
// Precedence is by priority, then by whose tenant had less (FairShare), then arrival, in
// everything: decode rows, prompt chunks, admission, and from its end who is preempted when the
// pool is empty. A sequence gets blocks for all its
// known tokens when it is admitted, those of a prefix that was computed before included, and one
// more whenever it crosses into a new block. Who waits for a prefix that is being computed lets
// others go first. While others decode, a step takes only as many prompt rows as keep it short, but
// for short prompts now and then (StepTime). Plans run ahead of results: a row is planned before
// its input token is known. What must be dropped later (a row too many after a stop, a row of a
// preempted sequence) is known by its slot's generation.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/scheduler_config.hpp"
#include "engine/step.hpp"
#include "kernels/core.hpp"
#include "model/tokenizer.hpp"

namespace sluice::engine {

/// So many times `queue_max` sequences wait at most, whoever has them.
inline constexpr std::uint32_t queue_tenants = 4;

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
  std::uint64_t devices_lost = 0;
  std::uint32_t blocks_cached = 0;     ///< free blocks whose content is kept for whoever wants it
  std::uint64_t prompt_tokens = 0;     ///< of all sequences admitted
  std::uint64_t cached_tokens = 0;     ///< of these, found in the cache
};

class Scheduler {
 public:
  Scheduler(SchedulerConfig config, std::shared_ptr<const model::Tokenizer> tokenizer);
  ~Scheduler();

  /// Queues a sequence. `bad_request` (check_request; resumed tokens beyond an end; these and
  /// `unsupported` or `too_large` of its constraint, see constraint_grammar), `too_long`
  /// when prompt plus max tokens can never fit, or `overloaded` with a retry hint when the queue is
  /// full or the first token would, by what steps take, miss the deadline; never blocks or drops. A
  /// request whose resumed tokens are complete ends at once: see `take_events`.
  Result<void> submit(Request request, Nanoseconds now);

  /// Ends a sequence: its event comes with the next `apply` or at once from `take_events`.
  /// Unknown ids are ignored. What it held is free for the next plan.
  void cancel(SequenceId id, FinishReason reason, Error why, Nanoseconds now);

  /// The next step, or none when nothing can run or enough steps are in flight. Plans must run in
  /// the order they were made: a block may be granted while an earlier plan that uses it for
  /// another sequence still runs. Also ends what is past its deadline: see `take_events`.
  std::optional<StepPlan> plan(Nanoseconds now);

  /// The masks of a step whose plan does not sample now, once all that they depend on is known. Ask
  /// after every `plan`, `apply` and `cancel`, and hand them on before the next plan.
  std::optional<StepMasks> take_masks();

  /// Takes a step's result, oldest first. A failed step ends its sequences with its error. One
  /// token, or an error of its own, is expected of every sampled segment. A lost device's result
  /// brings only what `take_events` would.
  Applied apply(const StepResult& result, Nanoseconds now);

  /// Ends what is past its deadline, as `plan` does: for when there is no device to plan for.
  void expire(Nanoseconds now);

  /// The device is gone with all that it held, and another of the same shape takes its place,
  /// empty. What was in flight is forgotten, and nothing is left in blocks, slots or prefix cache;
  /// what ran waits again, in its order, to be computed anew from the tokens that it has, which
  /// gives the same tokens to the bit. Results of the old device's plans are ignored from here on.
  /// A sequence that ran at `losses_max` losses and gained no token between ends with `internal`,
  /// lest one that kills every device goes on for ever: see `take_events`.
  void lose_device(Nanoseconds now);
  static constexpr std::uint32_t losses_max = 3;

  /// Events that arose outside `apply`: cancelled, expired, or complete when submitted. Ask after
  /// every other call but `apply`, which brings them along.
  Applied take_events();

  SchedulerStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::engine
