#pragma once
// Threads that compute together, on cores of their own. Linux may wake two of them on one core
// while another idles, and then takes up to a tenth of a second to part them.

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace sluice::kernels::cpu {

/// A core for a thread that is on `own`, where one of the others is: one of `usable` that none of
/// them is on. None if it is alone there, or if there is no such core.
std::optional<std::uint32_t> core_apart(std::uint32_t own, std::span<const std::uint32_t> others,
                                        std::span<const std::uint32_t> usable);

class CoreKeeper {
 public:
  explicit CoreKeeper(std::uint32_t threads) : places_(threads) {}

  /// Before threads begin a piece of work together.
  void begin() { ++round_; }

  /// By each of them now and then meanwhile, a few nanoseconds: moves the calling thread if another
  /// was last seen on its core, and returns where it then is. Where the system does not say or
  /// allow it, nothing happens. A thread once moved stays with the cores that it might run on
  /// then, also if its cpuset grows later.
  std::optional<std::uint32_t> keep_apart(std::uint32_t thread);

 private:
  struct alignas(64) Place {
    /// The round above, the core below. Who has not been seen in this round may sleep.
    std::atomic<std::uint64_t> seen{0};
  };

  std::uint64_t at(std::uint32_t core) const { return std::uint64_t{round_} << 32 | core; }
  std::optional<std::uint32_t> move(std::uint32_t thread, std::uint32_t own);

  std::uint32_t round_ = 0;  ///< the first is 1
  std::vector<Place> places_;
};

}  // namespace sluice::kernels::cpu
