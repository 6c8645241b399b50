#pragma once
// Whether a node serves, as everybody outside its actors sees it.

#include <condition_variable>
#include <mutex>
#include <optional>

#include "kernels/core.hpp"

namespace sluice::actors {

/// Set by the actors, read by programs. Any thread.
class NodeStatus {
 public:
  void set_ready();
  void set_failed(Error why);  ///< for good; the first reason stays

  /// Waits for the first of ready and failed.
  Result<void> wait() const;
  Result<void> now() const;  ///< `unavailable` while starting

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool ready_ = false;
  std::optional<Error> failure_;
};

}  // namespace sluice::actors
