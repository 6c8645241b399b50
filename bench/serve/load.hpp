#pragma once
// Puts load on a node: any number of streams over one connection, driven by the calling thread.

#include <cstdint>
#include <functional>
#include <vector>

#include "bench/serve/metrics.hpp"
#include "transport/client.hpp"

namespace sluice::bench {

struct Load {
  std::vector<transport::Submit> requests;  ///< complete, each with its own stream id and owner
  std::vector<std::uint64_t> due_ns;        ///< of each, ascending, after the start
  std::size_t concurrency_max = 0;          ///< 0: no limit. Who must wait is sent later, and timed
                                            ///< from then, as vllm does
};

/// How far a run is.
struct LoadProgress {
  std::size_t total = 0, sent = 0, ended = 0, failed = 0;
  std::uint64_t output_tokens = 0;
  double elapsed_s = 0;
};

struct LoadResult {
  std::vector<RequestTrace> traces;  ///< one a request, in their order
  std::uint64_t duration_ns = 0;     ///< from the start to the last end
};

/// Called several times a second; false stops the run.
using LoadWatcher = std::function<bool(const LoadProgress&)>;

/// Runs to the end of every request. `cancelled` when the watcher said so: running streams are
/// cancelled. Refused and failed requests are in the traces.
Result<LoadResult> run_load(transport::Client& client, Load load, const LoadWatcher& watcher);

}  // namespace sluice::bench
