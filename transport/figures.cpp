#include "transport/figures.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace sluice::transport {
namespace {

constexpr std::uint64_t ns_per_s = 1'000'000'000;

double value_of(const Values& values, const std::string& name) {
  const auto found = values.find(name);
  return found == values.end() ? 0 : found->second;
}

std::uint64_t count_of(double value) {
  return value > 0 ? static_cast<std::uint64_t>(value) : 0;
}

}  // namespace

double Histogram::upper_ms(std::size_t bucket) {
  if (bucket + 1 >= bucket_count) return std::numeric_limits<double>::infinity();
  return first_upper_ms * std::exp2(static_cast<double>(bucket) / per_octave);
}

void Histogram::add(double value_ms) {
  const double place = value_ms > first_upper_ms
                           ? std::ceil(std::log2(value_ms / first_upper_ms) * per_octave)
                           : 0;
  auto bucket = place < bucket_count - 1 ? static_cast<std::size_t>(place) : bucket_count - 1;
  // The logarithm is rounded: a value at a bound belongs below it.
  if (bucket > 0 && value_ms <= upper_ms(bucket - 1)) --bucket;
  ++counts_[bucket];
  ++count_;
  sum_ms_ += value_ms;
}

double Histogram::mean_ms() const {
  return count_ == 0 ? 0 : sum_ms_ / static_cast<double>(count_);
}

double Histogram::percentile_ms(double p) const {
  const double wanted = p / 100 * static_cast<double>(count_);
  double below = 0;
  for (std::size_t i = 0; i < bucket_count; ++i) {
    const auto here = static_cast<double>(counts_[i]);
    if (here == 0 || below + here < wanted) {
      below += here;
      continue;
    }
    const double low = i == 0 ? 0 : upper_ms(i - 1);
    if (i + 1 == bucket_count) return low;
    return low + (upper_ms(i) - low) * std::clamp((wanted - below) / here, 0.0, 1.0);
  }
  return 0;
}

Histogram Histogram::since(const Histogram& earlier) const {
  Histogram out = *this;
  for (std::size_t i = 0; i < bucket_count; ++i) {
    if (earlier.counts_[i] > counts_[i]) return *this;
    out.counts_[i] -= earlier.counts_[i];
  }
  out.count_ -= earlier.count_;
  out.sum_ms_ = std::max(0.0, sum_ms_ - earlier.sum_ms_);
  return out;
}

void Histogram::put(const std::string& name,
                    std::vector<std::pair<std::string, double>>& values) const {
  values.emplace_back(name + ".count", static_cast<double>(count_));
  values.emplace_back(name + ".sum", sum_ms_);
  for (std::size_t i = 0; i < bucket_count; ++i)
    if (counts_[i] != 0)
      values.emplace_back(name + ".bucket." + std::to_string(i), static_cast<double>(counts_[i]));
}

Histogram Histogram::from(const std::string& name, const Values& values) {
  Histogram out;
  out.sum_ms_ = value_of(values, name + ".sum");
  const std::string prefix = name + ".bucket.";
  for (auto at = values.lower_bound(prefix); at != values.end() && at->first.starts_with(prefix);
       ++at) {
    const auto bucket = std::strtoul(at->first.c_str() + prefix.size(), nullptr, 10);
    if (bucket < bucket_count) out.counts_[bucket] += count_of(at->second);
  }
  for (const std::uint64_t count : out.counts_) out.count_ += count;
  return out;
}

void RateWindow::add(std::uint64_t now_ns, std::uint64_t count) {
  const std::uint64_t second = now_ns / ns_per_s;
  const std::size_t at = second % counts_.size();
  if (of_second_[at] != second) counts_[at] = 0;
  of_second_[at] = second;
  counts_[at] += count;
}

double RateWindow::per_second(std::uint64_t now_ns) const {
  const std::uint64_t second = now_ns / ns_per_s;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i)
    if (of_second_[i] < second && of_second_[i] + seconds >= second) sum += counts_[i];
  return static_cast<double>(sum) / seconds;
}

void add_derived(Values& values) {
  for (const std::string name : {"streams.ttft_ms", "streams.itl_ms"}) {
    const auto histogram = Histogram::from(name, values);
    values[name + ".mean"] = histogram.mean_ms();
    values[name + ".p50"] = histogram.percentile_ms(50);
    values[name + ".p90"] = histogram.percentile_ms(90);
    values[name + ".p99"] = histogram.percentile_ms(99);
  }
  const double blocks = value_of(values, "engine.blocks_total");
  values["engine.kv_use"] =
      blocks > 0 ? 1 - value_of(values, "engine.blocks_free") / blocks : 0;
  const double prompts = value_of(values, "engine.prompt_tokens");
  values["engine.prefix_hit_rate"] =
      prompts > 0 ? value_of(values, "engine.cached_tokens") / prompts : 0;
}

}  // namespace sluice::transport
