#pragma once
// How threads part the tasks of one stage after the other among themselves.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace sluice::kernels::cpu {

/// Each thread begins with a share of its own, side by side in memory where tasks are, and counts
/// it in a line of its own: a visit there costs nothing while nobody else comes. Who is through
/// with its share takes of the others', so that a thread without a core holds up nothing but the
/// tasks in its hands. A stage is over once its tasks are, and not once every thread was there.
class TaskShares {
 public:
  explicit TaskShares(std::uint32_t threads)
      : threads_(threads), shares_(std::make_unique<Share[]>(threads)) {}

  /// Before the first of a row of stages, with no thread in work().
  void begin() {
    for (std::uint32_t t = 0; t < threads_; ++t) shares_[t].taken = 0;
    finished_ = 0;
  }

  /// Runs tasks [0, count) of `stage` until none is left to begin. Stages count from 1 and up; each
  /// thread comes to all of them in order, once those before are over. Any thread, at once.
  template <class Run>
  void work(std::uint32_t stage, std::uint32_t count, std::uint32_t thread, Run run) {
    std::uint32_t done = 0;
    for (std::uint32_t i = 0; i < threads_; ++i) {
      const std::uint32_t owner = thread + i < threads_ ? thread + i : thread + i - threads_;
      const std::uint32_t end = begin_of(owner + 1, count);
      std::atomic<std::uint64_t>& taken = shares_[owner].taken;
      std::uint64_t seen = taken.load(std::memory_order_relaxed);
      for (;;) {
        const auto tag = static_cast<std::uint32_t>(seen >> 32);
        const std::uint32_t first =
            tag == stage ? static_cast<std::uint32_t>(seen) : begin_of(owner, count);
        if (tag > stage || first >= end) break;
        // A quarter of what is left, so that threads end together.
        const std::uint32_t take = std::max(1U, (end - first) / 4);
        const std::uint64_t then = std::uint64_t{stage} << 32 | (first + take);
        if (!taken.compare_exchange_weak(seen, then, std::memory_order_relaxed)) continue;
        for (std::uint32_t task = first; task < first + take; ++task) run(task);
        done += take;
        seen = taken.load(std::memory_order_relaxed);
      }
    }
    if (done > 0) finished_.fetch_add(done, std::memory_order_release);
  }

  /// Whether as many tasks have ended since begin(): what they wrote can be read.
  bool finished(std::uint64_t tasks) const {
    return finished_.load(std::memory_order_acquire) >= tasks;
  }

 private:
  /// The stage that it was last counted for, and that stage's first task which nobody has taken.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> taken{0};
  };

  std::uint32_t begin_of(std::uint32_t thread, std::uint32_t count) const {
    return static_cast<std::uint32_t>(std::uint64_t{thread} * count / threads_);
  }

  std::uint32_t threads_;
  std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<std::uint64_t> finished_{0};
};

}  // namespace sluice::kernels::cpu
