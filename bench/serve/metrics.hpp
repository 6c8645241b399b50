#pragma once
// What the requests of a load run say about a node, as `vllm bench serve` defines it. Pure.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::bench {

/// One request as its client saw it; times in ns of one steady clock.
struct RequestTrace {
  struct Arrival {
    std::uint64_t at_ns = 0;
    std::uint32_t tokens = 0;
  };
  std::uint64_t sent_ns = 0;
  std::vector<Arrival> arrivals;  ///< one a chunk that brought tokens, in order
  std::uint32_t prompt_tokens = 0;
  std::uint32_t cached_tokens = 0;
  std::optional<Error> failure;   ///< refused, failed or cut short: counts only in `failed`

  std::uint32_t output_tokens() const;
};

/// Limits that a request must keep to count as good; those not set are not looked at.
struct Goodput {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;

  bool asked() const { return ttft_ms || tpot_ms || e2el_ms; }
};

/// Of one figure over all requests or gaps, in ms; all 0 when there was none.
struct Distribution {
  std::size_t count = 0;
  double mean = 0, std = 0;  ///< of the population, as numpy's
  double min = 0, median = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};

/// The p-th percentile (0..100) of ascending values, interpolated linearly as numpy does.
double percentile(std::span<const double> ascending, double p);

/// Of values in any order.
Distribution distribution(std::vector<double> values);

struct ServeMetrics {
  std::uint64_t completed = 0;
  std::uint64_t failed = 0;
  std::map<std::string, std::uint64_t> failures;  ///< by error code
  double duration_s = 0;
  std::uint64_t total_input_tokens = 0;  ///< of completed requests, as the next two
  std::uint64_t total_output_tokens = 0;
  std::uint64_t total_cached_tokens = 0;
  double request_throughput = 0;         ///< completed requests a second
  std::optional<double> request_goodput; ///< good ones a second
  double output_throughput = 0;          ///< tokens a second
  double total_token_throughput = 0;     ///< with those of prompts
  double max_output_tokens_per_s = 0;    ///< in the best second since the first request
  std::uint64_t max_concurrent_requests = 0;  ///< in the fullest of these seconds
  Distribution ttft;  ///< from sent to the first token
  Distribution tpot;  ///< (e2el - ttft) / (output tokens - 1), of requests with two or more
  Distribution itl;   ///< gaps between arrivals in one stream
  Distribution e2el;  ///< from sent to the last token
  Distribution input_tokens, output_tokens;  ///< a request
};

ServeMetrics measure(std::span<const RequestTrace> traces, std::uint64_t duration_ns,
                     const Goodput& goodput);

/// What a run was asked to do, for its report.
struct RunSettings {
  std::string model;
  std::uint64_t num_prompts = 0;
  double request_rate = 0;            ///< 0: all at once
  double burstiness = 1;
  std::uint64_t max_concurrency = 0;  ///< 0: no limit
  std::uint64_t seed = 0;
};

/// One JSON object: `vllm bench serve`'s names, and under "aiperf" the same by that tool's names.
std::string to_json(const ServeMetrics& metrics, const RunSettings& settings);

/// A table for people.
std::string to_text(const ServeMetrics& metrics, const RunSettings& settings);

/// A sweep's runs as an SVG image: TTFT and ITL (median, p90, p99) against the request rate.
std::string to_svg(const std::vector<std::pair<RunSettings, ServeMetrics>>& runs);

}  // namespace sluice::bench
