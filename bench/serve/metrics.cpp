#include "bench/serve/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sluice::bench {
namespace {

constexpr double ns_per_ms = 1e6;
constexpr double ns_per_s = 1e9;

double ms(std::uint64_t from_ns, std::uint64_t to_ns) {
  return static_cast<double>(to_ns - from_ns) / ns_per_ms;
}

/// Counts by second since the first request was sent.
struct Seconds {
  std::uint64_t start_ns = 0;
  std::vector<std::uint64_t> tokens, requests;

  std::size_t index(std::uint64_t at_ns) {
    const auto second = static_cast<std::size_t>((at_ns - start_ns) / std::uint64_t{1'000'000'000});
    if (second >= tokens.size()) {
      tokens.resize(second + 1);
      requests.resize(second + 1);
    }
    return second;
  }

  void add(const RequestTrace& trace) {
    for (const auto& arrival : trace.arrivals) tokens[index(arrival.at_ns)] += arrival.tokens;
    const std::size_t last = index(trace.arrivals.back().at_ns);
    for (std::size_t second = index(trace.sent_ns); second <= last; ++second) ++requests[second];
  }

  static std::uint64_t highest(const std::vector<std::uint64_t>& counts) {
    return counts.empty() ? 0 : *std::ranges::max_element(counts);
  }
};

bool good(const Goodput& goodput, double ttft_ms, double tpot_ms, double e2el_ms) {
  return ttft_ms <= goodput.ttft_ms.value_or(ttft_ms) &&
         tpot_ms <= goodput.tpot_ms.value_or(tpot_ms) &&
         e2el_ms <= goodput.e2el_ms.value_or(e2el_ms);
}

}  // namespace

std::uint32_t RequestTrace::output_tokens() const {
  std::uint32_t sum = 0;
  for (const auto& arrival : arrivals) sum += arrival.tokens;
  return sum;
}

double percentile(std::span<const double> ascending, double p) {
  if (ascending.empty()) return 0;
  const double place = p / 100 * static_cast<double>(ascending.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const auto above = std::min(below + 1, ascending.size() - 1);
  const double part = place - static_cast<double>(below);
  return ascending[below] + (ascending[above] - ascending[below]) * part;
}

Distribution distribution(std::vector<double> values) {
  Distribution out;
  if (values.empty()) return out;
  std::ranges::sort(values);
  const auto count = static_cast<double>(values.size());
  out.count = values.size();
  out.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  out.std = std::sqrt(squares / count);
  out.min = values.front();
  out.median = percentile(values, 50);
  out.p90 = percentile(values, 90);
  out.p95 = percentile(values, 95);
  out.p99 = percentile(values, 99);
  out.max = values.back();
  return out;
}

ServeMetrics measure(std::span<const RequestTrace> traces, std::uint64_t duration_ns,
                     const Goodput& goodput) {
  ServeMetrics out;
  out.duration_s = static_cast<double>(duration_ns) / ns_per_s;
  Seconds seconds;
  seconds.start_ns = traces.empty() ? 0 : traces.front().sent_ns;
  for (const auto& trace : traces) seconds.start_ns = std::min(seconds.start_ns, trace.sent_ns);
  std::vector<double> ttfts, tpots, itls, e2els, inputs, outputs;
  std::uint64_t good_count = 0;
  for (const auto& trace : traces) {
    if (trace.failure || trace.arrivals.empty()) {
      ++out.failed;
      ++out.failures[std::string(
          to_string(trace.failure ? trace.failure->code : ErrorCode::internal))];
      continue;
    }
    ++out.completed;
    const std::uint32_t tokens = trace.output_tokens();
    const double ttft = ms(trace.sent_ns, trace.arrivals.front().at_ns);
    const double e2el = ms(trace.sent_ns, trace.arrivals.back().at_ns);
    const double tpot = tokens > 1 ? (e2el - ttft) / (tokens - 1) : 0;
    ttfts.push_back(ttft);
    e2els.push_back(e2el);
    if (tokens > 1) tpots.push_back(tpot);
    for (std::size_t i = 1; i < trace.arrivals.size(); ++i)
      itls.push_back(ms(trace.arrivals[i - 1].at_ns, trace.arrivals[i].at_ns));
    inputs.push_back(trace.prompt_tokens);
    outputs.push_back(tokens);
    out.total_input_tokens += trace.prompt_tokens;
    out.total_cached_tokens += trace.cached_tokens;
    out.total_output_tokens += tokens;
    good_count += good(goodput, ttft, tpot, e2el) ? 1 : 0;
    seconds.add(trace);
  }
  if (out.duration_s > 0) {
    const auto rate = [&](std::uint64_t count) {
      return static_cast<double>(count) / out.duration_s;
    };
    out.request_throughput = rate(out.completed);
    if (goodput.asked()) out.request_goodput = rate(good_count);
    out.output_throughput = rate(out.total_output_tokens);
    out.total_token_throughput = rate(out.total_input_tokens + out.total_output_tokens);
  }
  out.max_output_tokens_per_s = static_cast<double>(Seconds::highest(seconds.tokens));
  out.max_concurrent_requests = Seconds::highest(seconds.requests);
  out.ttft = distribution(std::move(ttfts));
  out.tpot = distribution(std::move(tpots));
  out.itl = distribution(std::move(itls));
  out.e2el = distribution(std::move(e2els));
  out.input_tokens = distribution(std::move(inputs));
  out.output_tokens = distribution(std::move(outputs));
  return out;
}

}  // namespace sluice::bench
