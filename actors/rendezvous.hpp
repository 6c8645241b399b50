#pragma once
// How the executors of a group find each other: each tells its address, and gets everybody's.

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "actors/executor.hpp"
#include "kernels/communicator.hpp"

namespace sluice::actors {

/// How a rank begins its part of a group's start: kernels::prepare_tcp, or a test's own.
using GroupPrepare = std::function<Result<std::unique_ptr<kernels::GroupStart>>(
    const kernels::Shard&, const kernels::CommunicatorOptions&)>;

/// One rank's, for one start of its group. An executor's thread meets; an actor cancels.
class Rendezvous {
 public:
  Rendezvous(std::unique_ptr<kernels::GroupStart> start, std::uint32_t timeout_ms);

  /// This rank's, for whoever collects them.
  std::string address() const;

  /// Connects, given every rank's address, by rank. `unavailable` says why it was cancelled; else
  /// as kernels::GroupStart. Blocks. Once.
  Result<std::shared_ptr<kernels::Communicator>> meet(const std::vector<std::string>& addresses);

  /// `meet` fails; the communicator that it made fails everywhere. Any thread, more than once.
  void cancel(const std::string& why);

 private:
  const std::unique_ptr<kernels::GroupStart> start_;
  const std::uint32_t timeout_ms_;
  std::mutex mutex_;
  std::string cancelled_;  ///< why; empty: it is not
  std::shared_ptr<kernels::Communicator> communicator_;
};

/// Meets the other ranks, then loads; without a rendezvous, alone.
EngineLoader load_rank(RankLoader load, std::shared_ptr<Rendezvous> rendezvous = nullptr,
                       std::vector<std::string> addresses = {});

}  // namespace sluice::actors
