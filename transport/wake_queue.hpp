#pragma once
// What other threads hand an I/O thread: a queue, and an eventfd that is written only when the
// thread sleeps, or is about to. Whoever hands it a few things while it sleeps does its turn
// instead of waking it: on another core a wake takes longer than the sends (docs/performance.md).
// So all that the thread owns is under one lock, which it gives up only to sleep.

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <mutex>
#include <thread>
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
    do_turn();
  }

  /// Any thread: as one after the other, in one turn, which is the I/O thread's when there are more
  /// than `few`. Leaves `items` empty.
  void post_all(std::vector<T>& items, std::size_t few) {
    if (items.empty()) return;
    const bool many = items.size() > few;
    {
      const std::lock_guard lock(mutex_);
      if (items_.empty())
        items_.swap(items);
      else
        std::move(items.begin(), items.end(), std::back_inserter(items_));
    }
    items.clear();
    if (many)
      wake();
    else
      do_turn();
  }

  /// Any thread: ends a sleep.
  void wake() {
    if (!sleeping_.exchange(false)) return;
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = write(fd_, &one, sizeof one);
  }

  // The I/O thread, between `begin` and `end`.

  /// From here on who posts calls `stand_in` while the thread sleeps: it does a turn, and says
  /// whether that leaves nothing to the thread.
  void begin(std::function<bool()> stand_in) {
    enter();
    stand_in_ = std::move(stand_in);
  }
  /// Nobody else does a turn from here on.
  void end() {
    stand_in_ = nullptr;
    leave();
  }

  /// Swaps what was posted into `items`, which the caller emptied. In any turn.
  void take(std::vector<T>& items) {
    const std::lock_guard lock(mutex_);
    items.swap(items_);
  }

  /// Readable when something was posted to a sleeping thread.
  int descriptor() const { return fd_; }

  /// Calls `poll`, which waits for `descriptor()` among others, unless something was posted or
  /// `may_sleep()` says no. Both are looked at after the producers were told that it sleeps. `poll`
  /// touches nothing that turns are about.
  template <class MaySleep, class Poll>
  void sleep(const MaySleep& may_sleep, const Poll& poll) {
    sleeping_ = true;
    bool idle = may_sleep();
    if (idle) {
      const std::lock_guard lock(mutex_);
      idle = items_.empty();
    }
    if (idle) {
      leave();
      poll();
      sleeping_ = false;  // from here on nobody goes before it
      enter();
    }
    sleeping_ = false;
    std::uint64_t count = 0;
    [[maybe_unused]] const auto taken = read(fd_, &count, sizeof count);
  }

 private:
  /// Does the turn here, or sees to it that the I/O thread does, as it will when it was woken. Also
  /// called in a turn, whose thread must not wait for itself. An exception would leave half a turn
  /// behind, and the I/O thread waiting for ever.
  void do_turn() noexcept {
    bool done = false;
    if (sleeping_ && turn_of_ != std::this_thread::get_id() && turn_.try_lock()) {
      turn_of_ = std::this_thread::get_id();
      done = stand_in_ && stand_in_();
      leave();
    }
    // Whoever has the turn now may have looked at the queue already: the thread looks again.
    if (!done) wake();
  }

  void enter() {
    turn_.lock();
    turn_of_ = std::this_thread::get_id();
  }
  void leave() {
    turn_of_ = std::thread::id();
    turn_.unlock();
  }

  std::mutex turn_;  // what a turn works with
  std::atomic<std::thread::id> turn_of_;
  std::function<bool()> stand_in_;  // under turn_
  std::mutex mutex_;
  std::vector<T> items_;
  std::atomic<bool> sleeping_ = false;
  int fd_ = -1;
};

}  // namespace sluice::transport
