#pragma once
// What a person at a terminal sees and presses: progress, and Ctrl-C.

#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>

namespace sluice::cli {

/// A bar on stderr while a model loads. Draws nothing unless stderr is a terminal, and nothing for
/// what is done before anyone would wonder.
class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar();  ///< clears it
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(const std::string& name, std::size_t done_bytes, std::size_t total_bytes);

  /// Clears it; what is loaded later, after a loss or for another node, shows nothing.
  void end();

 private:
  std::mutex mutex_;
  bool ended_ = false;
  using Clock = std::chrono::steady_clock;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point next_draw_;
};

/// While one lives, SIGINT sets a flag instead of ending the process. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  /// Whether SIGINT came since the last call.
  bool take();
};

}  // namespace sluice::cli
