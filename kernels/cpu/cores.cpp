#include "kernels/cpu/cores.hpp"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>

namespace sluice::kernels::cpu {

std::optional<std::uint32_t> core_apart(std::uint32_t own, std::span<const std::uint32_t> others,
                                        std::span<const std::uint32_t> usable) {
  const auto taken = [&](std::uint32_t core) {
    return std::find(others.begin(), others.end(), core) != others.end();
  };
  if (!taken(own)) return std::nullopt;
  const auto found = std::find_if_not(usable.begin(), usable.end(), taken);
  return found == usable.end() ? std::nullopt : std::optional(*found);
}

#if defined(__linux__)

namespace {

std::vector<std::uint32_t> cores_of(const cpu_set_t& set) {
  std::vector<std::uint32_t> cores;
  for (std::uint32_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

}  // namespace

std::optional<std::uint32_t> CoreKeeper::keep_apart(std::uint32_t thread) {
  const int core = ::sched_getcpu();
  if (core < 0) return std::nullopt;
  const std::uint64_t seen = at(static_cast<std::uint32_t>(core));
  std::atomic<std::uint64_t>& own = places_[thread].seen;
  // Only news are written: what is written is read anew by all.
  if (own.load(std::memory_order_relaxed) != seen) own.store(seen, std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < places_.size(); ++i) {
    if (i != thread && places_[i].seen.load(std::memory_order_relaxed) == seen)
      return move(thread, static_cast<std::uint32_t>(core));
  }
  return std::nullopt;
}

std::optional<std::uint32_t> CoreKeeper::move(std::uint32_t thread, std::uint32_t own) {
  cpu_set_t usable;
  if (::sched_getaffinity(0, sizeof usable, &usable) != 0) return std::nullopt;
  std::vector<std::uint32_t> others;
  for (std::uint32_t i = 0; i < places_.size(); ++i) {
    const std::uint64_t seen = places_[i].seen.load(std::memory_order_relaxed);
    if (i != thread && seen >> 32 == round_) others.push_back(static_cast<std::uint32_t>(seen));
  }
  const auto to = core_apart(own, others, cores_of(usable));
  if (!to) return std::nullopt;
  // Said beforehand: the other runs meanwhile, and would make way as well.
  places_[thread].seen.store(at(*to), std::memory_order_relaxed);
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(*to, &only);
  // Allowed there alone for a moment; it stays as long as the system has no reason to move it.
  if (::sched_setaffinity(0, sizeof only, &only) != 0) return std::nullopt;
  const auto now = static_cast<std::uint32_t>(::sched_getcpu());
  ::sched_setaffinity(0, sizeof usable, &usable);
  return now;
}

#else

std::optional<std::uint32_t> CoreKeeper::keep_apart(std::uint32_t) { return std::nullopt; }

#endif

}  // namespace sluice::kernels::cpu
