#pragma once
// A scheduler with the fake device below it, driven by hand.

#include "engine/scheduler.hpp"
#include "tests/engine/fake_device.hpp"
#include "tests/engine/fake_tokenizer.hpp"

namespace sluice::engine::test {

struct Ended {
  std::vector<Token> tokens;  // new ones
  SequenceEvent last;
  SequenceTiming timing;
};

struct Engine {
  explicit Engine(SchedulerConfig given)
      : config(given), device(config), scheduler(config, fake_tokenizer()) {}

  // Plans and completes until nothing is left; what each sequence yielded.
  std::map<SequenceId, Ended> drain() {
    for (auto plan = step(); plan; plan = step()) take(scheduler.apply(device.run(*plan), ++now));
    return ended;
  }

  std::optional<StepPlan> step() {
    auto plan = scheduler.plan(++now);
    take(scheduler.take_events());
    return plan;
  }

  void apply(const StepResult& result) { take(scheduler.apply(result, ++now)); }

  void take(const Applied& applied) {
    for (const SequenceEvent& event : applied.events) {
      Ended& entry = ended[event.id];
      entry.tokens.insert(entry.tokens.end(), event.tokens.begin(), event.tokens.end());
      entry.last = event;
    }
    for (const FinishedSequence& finished : applied.finished) {
      ended[finished.id].timing = finished.timing;
    }
  }

  SchedulerConfig config;
  FakeDevice device;
  Scheduler scheduler;
  Nanoseconds now = 0;
  std::map<SequenceId, Ended> ended;
};

}  // namespace sluice::engine::test
