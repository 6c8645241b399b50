#include "cli/terminal.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>

namespace sluice::cli {

namespace {

constexpr auto draw_after = std::chrono::milliseconds(300);
constexpr auto draw_every = std::chrono::milliseconds(50);
constexpr std::size_t bar_columns = 30;
constexpr double megabyte = 1e6;

volatile std::sig_atomic_t interrupt_seen = 0;
struct sigaction interrupt_before {};

void on_interrupt(int) { interrupt_seen = 1; }

}  // namespace

ProgressBar::ProgressBar()
    : terminal_(isatty(STDERR_FILENO) == 1), next_draw_(Clock::now() + draw_after) {}

ProgressBar::~ProgressBar() { end(); }

void ProgressBar::end() {
  const std::lock_guard lock(mutex_);
  if (drawn_ && !ended_) fmt::print(stderr, "\r\033[K");
  ended_ = true;
}

void ProgressBar::show(const std::string& name, std::size_t done_bytes, std::size_t total_bytes) {
  const std::lock_guard lock(mutex_);
  if (ended_ || !terminal_ || total_bytes == 0 || Clock::now() < next_draw_) return;
  next_draw_ = Clock::now() + draw_every;
  drawn_ = true;
  const double part =
      std::min(1.0, static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
  const auto full = static_cast<std::size_t>(part * bar_columns);
  fmt::print(stderr, "\r\033[Kloading {} [{}{}] {:3.0f}% of {:.0f} MB", name,
             std::string(full, '#'), std::string(bar_columns - full, '.'), part * 100,
             static_cast<double>(total_bytes) / megabyte);
  std::fflush(stderr);
}

InterruptGuard::InterruptGuard() {
  interrupt_seen = 0;
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // without SA_RESTART: a read at the prompt must end too
  sigaction(SIGINT, &action, &interrupt_before);
}

InterruptGuard::~InterruptGuard() { sigaction(SIGINT, &interrupt_before, nullptr); }

bool InterruptGuard::take() {
  const bool seen = interrupt_seen != 0;
  interrupt_seen = 0;
  return seen;
}

}  // namespace sluice::cli
