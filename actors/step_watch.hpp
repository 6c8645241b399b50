#pragma once
// Which steps are under way, since when, and whether one hangs. Pure; time is an argument.

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "engine/step.hpp"

namespace sluice::actors {

class StepWatch {
 public:
  /// Of steps that have hung when they take longer than that.
  explicit StepWatch(engine::Nanoseconds limit = 0) : limit_(limit) {}

  engine::Nanoseconds limit() const { return limit_; }

  /// Steps are answered in the order in which they began.
  void began(engine::Ticket ticket, engine::Nanoseconds now) { steps_.emplace_back(ticket, now); }

  /// The device is busy with the next one from now on.
  void ended(engine::Nanoseconds now) {
    if (steps_.empty()) return;
    steps_.pop_front();
    if (!steps_.empty()) steps_.front().second = now;
  }

  /// In how long somebody has to `look`; none: nothing is under way, or a look is due already.
  std::optional<engine::Nanoseconds> next_look() {
    if (steps_.empty() || std::exchange(look_due_, true)) return std::nullopt;
    return limit_ / 4;
  }

  /// The step that hangs, if one does.
  std::optional<engine::Ticket> look(engine::Nanoseconds now) {
    look_due_ = false;
    if (steps_.empty() || now - steps_.front().second <= limit_) return std::nullopt;
    return steps_.front().first;
  }

 private:
  engine::Nanoseconds limit_;
  std::deque<std::pair<engine::Ticket, engine::Nanoseconds>> steps_;
  bool look_due_ = false;
};

}  // namespace sluice::actors
