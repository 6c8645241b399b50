#pragma once
// The figures behind `stats`: latencies in fixed buckets, rates over a window, and what follows
// from sums. Pure; everything adds up over shards by name.

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace sluice::transport {

using Values = std::map<std::string, double>;

/// Latencies in buckets four to an octave, from 0.1 ms to 23 minutes: a percentile is right to
/// within 19%, and counts taken apart add up. Adding allocates nothing.
class Histogram {
 public:
  static constexpr std::size_t bucket_count = 97;  ///< the last has no upper end
  static constexpr std::size_t per_octave = 4;
  static constexpr double first_upper_ms = 0.1;

  /// Highest value of a bucket, in ms; infinity for the last.
  static double upper_ms(std::size_t bucket);

  void add(double value_ms);

  std::uint64_t count() const { return count_; }
  double sum_ms() const { return sum_ms_; }
  std::uint64_t in_bucket(std::size_t bucket) const { return counts_[bucket]; }
  double mean_ms() const;

  /// The p-th percentile (0..100), interpolated within its bucket; 0 when empty.
  double percentile_ms(double p) const;

  /// What was added after `earlier`, a former state of this one. Everything, if it is no former
  /// state: the node was started anew.
  Histogram since(const Histogram& earlier) const;

  /// As values `NAME.count`, `NAME.sum`, and `NAME.bucket.NN` where not 0; and back.
  void put(const std::string& name, std::vector<std::pair<std::string, double>>& values) const;
  static Histogram from(const std::string& name, const Values& values);

 private:
  std::array<std::uint64_t, bucket_count> counts_{};
  std::uint64_t count_ = 0;
  double sum_ms_ = 0;
};

/// How much came a second, over the last ten whole seconds.
class RateWindow {
 public:
  static constexpr std::size_t seconds = 10;

  void add(std::uint64_t now_ns, std::uint64_t count);
  double per_second(std::uint64_t now_ns) const;

 private:
  /// One more than are averaged: the second that is not over counts for the next.
  std::array<std::uint64_t, seconds + 1> counts_{};
  std::array<std::uint64_t, seconds + 1> of_second_{};
};

/// Adds what only sums can tell: percentiles of latencies, how much of the KV pool is in use, which
/// part of prompts came from the prefix cache.
void add_derived(Values& values);

}  // namespace sluice::transport
