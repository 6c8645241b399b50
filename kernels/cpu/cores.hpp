#pragma once
// Threads that compute together, on cores of their own. Linux may wake two of them on one core
// while another idles, and then takes 5 to 20 ms to part them.

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

namespace sluice::kernels::cpu {

class CoreKeeper {
 public:
  explicit CoreKeeper(std::uint32_t threads) : places_(threads) {}

  /// Before threads begin a piece of work together.
  void begin() { ++round_; }

  /// By each of them now and then meanwhile, a few nanoseconds: if another was last seen on its
  /// core, moves the calling thread to one where none was, and returns that. Where there is none,
  /// or the system does not say or allow it, nothing happens. A thread once moved stays with the
  /// cores that it might run on then, also if its cpuset grows later.
  std::optional<std::uint32_t> keep_apart(std::uint32_t thread);

 private:
  struct alignas(64) Place {
    /// The round above, the core below. Who has not been seen in this round may sleep.
    std::atomic<std::uint64_t> seen{0};
  };

  std::uint64_t at(std::uint32_t core) const { return std::uint64_t{round_} << 32 | core; }
  bool has_another(std::uint32_t core, std::uint32_t thread) const;

  std::uint32_t round_ = 0;  ///< the first is 1
  std::vector<Place> places_;
};

}  // namespace sluice::kernels::cpu
