#pragma once
// How the executors of a group find each other: each tells its address, and gets everybody's.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "actors/executor.hpp"
#include "kernels/communicator.hpp"

namespace sluice::actors {

/// One rank's, for one start of its group. An executor's thread meets; an actor gives and cancels.
class Rendezvous {
 public:
  /// `tell` hands this rank's address to whoever collects them.
  Rendezvous(kernels::Shard shard, kernels::CommunicatorOptions options,
             std::function<void(std::string)> tell, std::uint32_t timeout_ms);

  /// Tells, waits for all addresses, connects. `deadline` says what did not come, `unavailable` why
  /// it was cancelled; else as kernels::GroupStart. Blocks. Once.
  Result<std::shared_ptr<kernels::Communicator>> meet();

  /// Every rank's address, by rank.
  void give(std::vector<std::string> addresses);

  /// `meet` fails; the communicator that it made fails everywhere. Any thread, more than once.
  void cancel(const std::string& why);

 private:
  Result<std::vector<std::vector<std::byte>>> addresses();

  const kernels::Shard shard_;
  const kernels::CommunicatorOptions options_;
  const std::function<void(std::string)> tell_;
  const std::uint32_t timeout_ms_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> addresses_;
  std::string cancelled_;  ///< why; empty: it is not
  std::unique_ptr<kernels::GroupStart> start_;
  std::shared_ptr<kernels::Communicator> communicator_;
};

/// Meets the other ranks, then loads; without a rendezvous, alone.
EngineLoader load_rank(RankLoader load, std::shared_ptr<Rendezvous> rendezvous);

}  // namespace sluice::actors
