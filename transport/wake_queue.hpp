#pragma once
// What other threads hand an I/O thread, and how they wake it: a queue and an eventfd that is
// written only when the thread sleeps, or is about to.

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::transport {

template <class T>
class WakeQueue {
 public:
  WakeQueue() = default;
  WakeQueue(const WakeQueue&) = delete;
  WakeQueue& operator=(const WakeQueue&) = delete;
  ~WakeQueue() {
    if (fd_ >= 0) close(fd_);
  }

  /// `io` when the system gives no descriptor. Before everything else.
  Result<void> open() {
    fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd_ >= 0) return {};
    return fail(ErrorCode::io, "cannot make an eventfd: {}; raise the limit of open files",
                std::strerror(errno));
  }

  /// Any thread.
  void post(T item) {
    {
      const std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
    }
    wake();
  }

  /// Any thread: as one after the other, with one wake. Leaves `items` empty.
  void post_all(std::vector<T>& items) {
    if (items.empty()) return;
    {
      const std::lock_guard lock(mutex_);
      if (items_.empty())
        items_.swap(items);
      else
        std::move(items.begin(), items.end(), std::back_inserter(items_));
    }
    items.clear();
    wake();
  }

  /// Any thread: ends a sleep.
  void wake() {
    if (!sleeping_.exchange(false)) return;
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = write(fd_, &one, sizeof one);
  }

  // The I/O thread.

  /// Swaps what was posted into `items`, which the caller emptied.
  void take(std::vector<T>& items) {
    const std::lock_guard lock(mutex_);
    items.swap(items_);
  }

  /// Readable when something was posted to a sleeping thread.
  int descriptor() const { return fd_; }

  /// Calls `poll`, which waits for `descriptor()` among others, unless something was posted or
  /// `may_sleep()` says no. Both are looked at after the producers were told that it sleeps.
  template <class MaySleep, class Poll>
  void sleep(const MaySleep& may_sleep, const Poll& poll) {
    sleeping_ = true;
    bool idle = may_sleep();
    if (idle) {
      const std::lock_guard lock(mutex_);
      idle = items_.empty();
    }
    if (idle) poll();
    sleeping_ = false;
    std::uint64_t count = 0;
    [[maybe_unused]] const auto taken = read(fd_, &count, sizeof count);
  }

 private:
  std::mutex mutex_;
  std::vector<T> items_;
  std::atomic<bool> sleeping_ = false;
  int fd_ = -1;
};

}  // namespace sluice::transport
