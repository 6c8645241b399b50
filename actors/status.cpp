#include "actors/status.hpp"

#include <utility>

namespace sluice::actors {

void NodeStatus::set_ready() {
  const std::scoped_lock lock(mutex_);
  ready_ = true;
  changed_.notify_all();
}

void NodeStatus::set_failed(Error why) {
  const std::scoped_lock lock(mutex_);
  if (!failure_) failure_ = std::move(why);
  changed_.notify_all();
}

Result<void> NodeStatus::wait() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ready_ || failure_; });
  if (failure_) return tl::unexpected(*failure_);
  return {};
}

Result<void> NodeStatus::now() const {
  const std::scoped_lock lock(mutex_);
  if (failure_) return tl::unexpected(*failure_);
  if (!ready_) return fail(ErrorCode::unavailable, "the node is starting");
  return {};
}

}  // namespace sluice::actors
