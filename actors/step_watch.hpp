#pragma once
// Which steps are under way, and since when. Pure; time is an argument.

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "engine/step.hpp"

namespace sluice::actors {

class StepWatch {
 public:
  /// Steps are answered in the order in which they began.
  void began(engine::Ticket ticket, engine::Nanoseconds now) { steps_.emplace_back(ticket, now); }

  /// The device is busy with the next one from now on.
  void ended(engine::Nanoseconds now) {
    if (steps_.empty()) return;
    steps_.pop_front();
    if (!steps_.empty()) steps_.front().second = now;
  }

  bool idle() const { return steps_.empty(); }

  /// The step that has taken longer than that, if one has.
  std::optional<engine::Ticket> hung(engine::Nanoseconds now, engine::Nanoseconds limit) const {
    if (steps_.empty() || now - steps_.front().second <= limit) return std::nullopt;
    return steps_.front().first;
  }

 private:
  std::deque<std::pair<engine::Ticket, engine::Nanoseconds>> steps_;
};

}  // namespace sluice::actors
