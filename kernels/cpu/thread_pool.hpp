#pragma once
// A fixed set of threads that run one function together: one wake a step, spinning waits inside.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace sluice::kernels::cpu {

/// Asks that the calling thread, which computes without pause, is interrupted at once by any thread
/// that wakes up: it gets as much time as before, in longer slices. Linux 6.12 or newer; elsewhere
/// nothing happens, and a woken thread may wait for a timer tick (4 ms) where all cores compute.
void let_others_in();

/// Gives the core, now and then, to a thread of the service that waits for it. The system lets one
/// in as it wakes (see above), but one that another interrupted, once it has had its share, waits
/// for the next timer tick: 4 ms, two tokens. A yield lets it in; 0.4 us where none waits. When it
/// takes so long that the core must have gone to another program, none is tried for a while: a
/// program that computes without pause would get almost all of the time.
class alignas(64) Breather {
 public:
  /// If the last time was 0.2 ms ago.
  void breathe();

  /// Also if it was just now: there is news for others.
  void breathe_now();

 private:
  using Time = std::chrono::steady_clock::time_point;
  void yield(Time now);

  Time next_{};
  Time trusted_{};  ///< when others are tried again
};

class ThreadPool {
 public:
  /// `threads` in all; the thread that calls run() is one of them. At least 1.
  explicit ThreadPool(std::uint32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::uint32_t threads() const { return static_cast<std::uint32_t>(workers_.size()) + 1; }

  /// Calls body(thread) on every thread, 0 being the caller's; returns when all have returned.
  void run(const std::function<void(std::uint32_t)>& body);

  /// Inside a body: returns when `ready()`, which another thread of it is about to bring about.
  template <class Ready>
  static void wait(Ready ready);

 private:
  void barrier();  ///< until every thread is here
  void work(std::uint32_t thread);

  alignas(64) std::atomic<std::uint32_t> started_{0};  ///< runs begun; workers sleep on it
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};    ///< barriers passed
  const std::function<void(std::uint32_t)>* body_ = nullptr;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

/// Makes a thread that spins cheaper for its core.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A pause is some 40 cycles: about 10 us of spinning, longer than a balanced stage's skew and
// shorter than a time slice. After that the core may be needed by the very thread waited for.
constexpr int spins_before_yield = 800;

template <class Ready>
void ThreadPool::wait(Ready ready) {
  for (int spins = 0; !ready(); ++spins) {
    if (spins < spins_before_yield) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace sluice::kernels::cpu
