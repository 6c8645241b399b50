#include "kernels/cpu/bandwidth.hpp"

#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/core.hpp"
#include "kernels/cpu/pass_by.hpp"

namespace sluice::kernels::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// How far ahead of its use a word is asked for, as products ask for their weights.
constexpr std::size_t prefetch_bytes = 8192;

/// Eight independent sums, and asking ahead, keep enough loads in flight for the memory, not the
/// adder or the processor's own guesses, to be the limit.
template <bool pass_by>
std::uint64_t sum_words(const std::uint64_t* words, std::size_t count) {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i + 8 <= count; i += 8) {
    __builtin_prefetch(reinterpret_cast<const char*>(words + i) + prefetch_bytes, 0,
                       pass_by ? 0 : 3);
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
  }
  return std::accumulate(std::begin(sums), std::end(sums), std::uint64_t{0});
}

}  // namespace

double read_bandwidth(std::size_t bytes, std::uint32_t threads) {
  constexpr int passes = 12;
  threads = std::max(1U, threads);
  const auto sum = weights_pass_by() ? sum_words<true> : sum_words<false>;
  const std::size_t words_each = bytes / sizeof(std::uint64_t) / threads;
  struct Pass {
    Clock::time_point start, end;
  };
  std::vector<std::array<Pass, passes>> timed(threads);
  std::vector<std::uint64_t> sums(threads);
  std::barrier gate(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::jthread> workers;
  for (std::uint32_t t = 0; t < threads; ++t)
    workers.emplace_back([&, t] {
      // First touched by the thread that reads it.
      const std::vector<std::uint64_t> words(words_each, t + 1);
      for (auto& pass : timed[t]) {
        gate.arrive_and_wait();
        pass.start = Clock::now();
        sums[t] += sum(words.data(), words.size());
        pass.end = Clock::now();
      }
    });
  workers.clear();
  double best_s = 1e9;
  std::uint64_t expected = 0, found = 0;
  for (int pass = 0; pass < passes; ++pass) {
    auto first = Clock::time_point::max();
    auto last = Clock::time_point::min();
    for (const auto& thread : timed) {
      first = std::min(first, thread[pass].start);
      last = std::max(last, thread[pass].end);
    }
    best_s = std::min(best_s, std::chrono::duration<double>(last - first).count());
  }
  for (std::uint32_t t = 0; t < threads; ++t) {
    expected += passes * (words_each / 8 * 8) * (t + 1);
    found += sums[t];
  }
  SLUICE_ASSERT(found == expected, "the probe read every word it was timed for");
  return static_cast<double>(words_each * sizeof(std::uint64_t) * threads) / best_s;
}

}  // namespace sluice::kernels::cpu
