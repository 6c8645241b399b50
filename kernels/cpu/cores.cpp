#include "kernels/cpu/cores.hpp"

#if defined(__linux__)
#include <sched.h>
#endif

namespace sluice::kernels::cpu {

bool CoreKeeper::has_another(std::uint32_t core, std::uint32_t thread) const {
  for (std::uint32_t i = 0; i < places_.size(); ++i) {
    if (i != thread && places_[i].seen.load(std::memory_order_relaxed) == at(core)) return true;
  }
  return false;
}

std::optional<std::uint32_t> CoreKeeper::keep_apart([[maybe_unused]] std::uint32_t thread) {
#if defined(__linux__)
  const int own = ::sched_getcpu();
  if (own < 0) return std::nullopt;
  const std::uint64_t here = at(static_cast<std::uint32_t>(own));
  std::atomic<std::uint64_t>& seen = places_[thread].seen;
  // Only news are written: what is written is read anew by all.
  if (seen.load(std::memory_order_relaxed) != here) seen.store(here, std::memory_order_relaxed);
  if (!has_another(static_cast<std::uint32_t>(own), thread)) return std::nullopt;

  cpu_set_t usable;
  if (::sched_getaffinity(0, sizeof usable, &usable) != 0) return std::nullopt;
  std::uint32_t to = 0;
  while (to < CPU_SETSIZE && (!CPU_ISSET(to, &usable) || has_another(to, thread))) ++to;
  if (to == CPU_SETSIZE) return std::nullopt;
  // Said beforehand: the other runs meanwhile, and would make way as well.
  seen.store(at(to), std::memory_order_relaxed);
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(to, &only);
  // Allowed there alone for a moment; it stays as long as the system has no reason to move it.
  if (::sched_setaffinity(0, sizeof only, &only) != 0) return std::nullopt;
  const auto now = static_cast<std::uint32_t>(::sched_getcpu());
  ::sched_setaffinity(0, sizeof usable, &usable);
  return now;
#else
  return std::nullopt;
#endif
}

}  // namespace sluice::kernels::cpu
