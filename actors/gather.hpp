#pragma once
// Sums the figures of several actors: of those that answer in time.

#include <chrono>
#include <functional>
#include <memory>
#include <utility>

#include "actors/actors.hpp"
#include "transport/figures.hpp"

namespace sluice::actors {

/// A stats question waits at most this long for a part that is busy or gone.
constexpr std::chrono::seconds stats_timeout{2};

/// One question's answers. Kept by the requests that it made; hands on the sums, and what follows
/// from them, when the last has come or the time is over.
class Gathering : public std::enable_shared_from_this<Gathering> {
 public:
  Gathering(NamedValues own, std::function<void(const transport::Values&)> answer)
      : values_(std::move(own)), answer_(std::move(answer)) {}

  template <class Self, class Part>
  void ask(Self self, const Part& part) {
    ++missing_;
    self->request(part, stats_timeout, stats_atom::value)
        .then(
            [all = shared_from_this()](const NamedValues& values) {
              all->values_.insert(all->values_.end(), values.begin(), values.end());
              all->arrived();
            },
            [all = shared_from_this()](const caf::error&) { all->arrived(); });
  }

  /// After the last `ask`.
  void asked_all() { arrived(); }

 private:
  void arrived() {
    if (--missing_ != 0) return;
    // Shards of one part share names: their values add up.
    transport::Values sums;
    for (const auto& [name, value] : values_) sums[name] += value;
    transport::add_derived(sums);
    answer_(sums);
  }

  NamedValues values_;
  std::function<void(const transport::Values&)> answer_;
  std::size_t missing_ = 1;
};

}  // namespace sluice::actors
