#pragma once
// What passes between a scheduler and a device that trust each other no further than the wire: only
// plans that a scheduler could have made, and only results that a device could have had. A backend
// and a scheduler answer all else with an assertion, which would let one node end another.

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/scheduler.hpp"
#include "engine/step.hpp"
#include "kernels/core.hpp"

namespace sluice::engine {

/// Whether a scheduler can plan for a device of these sizes, and hold what it must know of it.
Result<void> check_config(const SchedulerConfig& config);

/// Beside the device: follows what its slots hold. One thread.
class PlanCheck {
 public:
  /// Of the engine whose plans come; `vocabulary` counts the rows of its embedding.
  PlanCheck(const SchedulerConfig& config, std::uint32_t vocabulary);

  /// `bad_request` names what is wrong; nothing that follows is of use then.
  Result<void> take(const StepPlan& plan);
  Result<void> take(const StepMasks& masks);

 private:
  struct Slot {
    std::uint32_t generation = 0;
    bool open = false;
    bool held = false;         ///< its logits wait for a mask
    std::uint32_t tokens = 0;  ///< known when all that was planned has run
    std::uint32_t blocks = 0;  ///< granted from the first on
    Ticket planned = 0;        ///< last step with a segment of it
  };

  Result<Slot*> find(kernels::SlotRef ref);
  Result<void> open(const kernels::SlotOpen& open);
  Result<void> grant(const kernels::BlockGrant& grant);
  Result<void> place(const kernels::Segment& segment, Ticket ticket, bool sample_now);

  SchedulerConfig config_;
  std::uint32_t vocabulary_;
  std::vector<Slot> slots_;
  Ticket last_ = 0;
  bool owes_masks_ = false;
};

/// Beside the scheduler: follows which steps are underway. One thread.
class ResultCheck {
 public:
  explicit ResultCheck(std::uint32_t vocabulary) : vocabulary_(vocabulary) {}

  /// What goes to the device.
  void planned(const StepPlan& plan);
  void planned(const StepMasks& masks);

  /// `bad_request` names what is wrong with a result.
  Result<void> take(const StepResult& result);

 private:
  struct Row {
    kernels::SlotRef slot;
    bool owes = true;  ///< a token; not while its mask is late
  };
  struct Step {
    Ticket ticket = 0;
    std::vector<Row> rows;
  };

  std::uint32_t vocabulary_;
  std::deque<Step> steps_;
};

}  // namespace sluice::engine
