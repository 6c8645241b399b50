#include "kernels/cpu/thread_pool.hpp"

#if defined(__linux__)
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/core.hpp"

namespace sluice::kernels::cpu {
namespace {

// How long a thread computes before it lets waiting ones in, and how long those of the service take
// at most, one behind the other: mostly 0.2 ms, at times 1. Longer, and it was somebody else who
// took the core, for a slice of the system's (2.8 ms) or until a tick.
constexpr std::chrono::microseconds breath_interval{200};
constexpr std::chrono::milliseconds guest_time_max{2};
constexpr std::chrono::milliseconds guests_forgotten{250};

// Longer than the system's usual slice (2.8 ms at most): whoever wakes has the shorter one. And no
// longer than that needs: who yields gives up the rest of its slice (Linux 6.18), and with slices
// of 100 ms two busy loops beside a node of two threads brought it to a standstill.
constexpr std::uint64_t slice_ns = 3'000'000;

// Between steps a worker stays awake for about 20 us: the time a batcher needs to send the next
// plan when it could not plan ahead. Then it sleeps.
constexpr int spins_before_sleep = 1600;

}  // namespace

void let_others_in() {
#if defined(__linux__) && defined(SYS_sched_setattr)
  // As sched_setattr(2) has it; the C library has neither the structure nor the call.
  struct {
    std::uint32_t size;
    std::uint32_t policy;  // 0: SCHED_OTHER
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime_ns;  // the slice
    std::uint64_t deadline_ns;
    std::uint64_t period_ns;
  } const attributes{sizeof attributes, 0, 0, ::getpriority(PRIO_PROCESS, 0), 0, slice_ns, 0, 0};
  ::syscall(SYS_sched_setattr, 0, &attributes, 0U);
#endif
}

void Breather::breathe() {
  const Time now = std::chrono::steady_clock::now();
  if (now >= next_) yield(now);
}

void Breather::breathe_now() { yield(std::chrono::steady_clock::now()); }

void Breather::yield(Time now) {
  if (now < trusted_) return;
  std::this_thread::yield();
  const Time back = std::chrono::steady_clock::now();
  next_ = back + breath_interval;
  if (back - now > guest_time_max) trusted_ = back + guests_forgotten;
}

ThreadPool::ThreadPool(std::uint32_t threads) {
  SLUICE_ASSERT(threads >= 1, "a pool has at least the calling thread");
  for (std::uint32_t i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] { work(i); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(const std::function<void(std::uint32_t)>& body) {
  body_ = &body;
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  body(0);
  barrier();
}

void ThreadPool::barrier() {
  const auto all = static_cast<std::uint32_t>(workers_.size()) + 1;
  if (all == 1) return;
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  wait([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

void ThreadPool::work(std::uint32_t thread) {
  let_others_in();
  for (std::uint32_t seen = 0;; ++seen) {
    for (int spins = 0; started_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < spins_before_sleep) {
        pause();
      } else {
        started_.wait(seen, std::memory_order_acquire);
      }
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    (*body_)(thread);
    barrier();
  }
}

}  // namespace sluice::kernels::cpu
