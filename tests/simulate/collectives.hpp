#pragma once
// What the ranks of simulated groups say to each other inside a step, as kernels/communicator.hpp
// has it: over connections of its own, which break, fall silent and are cut with the network. Here
// nobody waits: whoever would, asks again.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/communicator.hpp"
#include "tests/simulate/node.hpp"

namespace sluice::simulate {

/// One group, from its start to its end.
struct Meeting {
  /// While a rank's process has it, it is there.
  struct Presence {
    std::string aborted;  ///< why; empty: it was not
  };
  struct Member {
    std::size_t process = 0;
    std::weak_ptr<Presence> presence;
    std::deque<std::uint64_t> said;    ///< what it brought into each step's collective
    std::vector<std::size_t> arrived;  ///< how much of what each other one said
  };
  std::vector<Member> members;
  std::set<std::pair<std::size_t, std::size_t>> broken, silent;  ///< connections, by process
  bool erred = false;  ///< a rank has computed a wrong token
};

class Collectives;

/// A rank's communicator. A step of the simulated device has one collective.
class RankCommunicator : public kernels::Communicator {
 public:
  RankCommunicator(Collectives& network, std::shared_ptr<Meeting> meeting,
                   std::shared_ptr<Meeting::Presence> presence, kernels::Shard shard,
                   std::uint64_t deadline_ns);

  /// Takes part in the next collective with `plan`, which must be the same on all ranks; nothing as
  /// long as it waits for them. Throws std::logic_error when they brought another.
  std::optional<Result<void>> meet(std::uint64_t plan);

  /// Whether this rank may compute a wrong token now: one of a group does, once.
  bool may_err() const { return !meeting_->erred; }
  void err() { meeting_->erred = true; }

  kernels::Shard shard() const override { return shard_; }
  std::string name() const override { return "simulated"; }
  void abort(std::string_view why) override;
  std::optional<Error> failure() const override;

  Result<void> all_reduce(std::span<float>) override { return no_data(); }
  Result<void> all_gather(std::span<const std::byte>, std::span<std::byte>) override {
    return no_data();
  }
  Result<void> broadcast(std::span<std::byte>, std::uint32_t) override { return no_data(); }

 private:
  static Result<void> no_data() {
    return fail(ErrorCode::unsupported, "simulated devices have no vectors to add");
  }
  Result<void> give_up(ErrorCode code, std::uint32_t rank, const std::string& why);

  Collectives& network_;
  std::shared_ptr<Meeting> meeting_;
  std::shared_ptr<Meeting::Presence> presence_;
  kernels::Shard shard_;
  std::uint64_t deadline_ns_;
  std::optional<std::uint64_t> since_ns_;  ///< waits in a collective
  std::uint64_t met_ = 0;                  ///< collectives done
  std::optional<Error> failed_;
};

/// The network between all ranks of a fleet.
class Collectives {
 public:
  /// `passes`: whether what one process sends to another arrives now.
  Collectives(std::function<bool(std::size_t, std::size_t)> passes, const std::uint64_t& now_ns)
      : passes_(std::move(passes)), now_ns_(now_ns) {}

  /// For a rank in that process, in place of kernels::prepare_tcp.
  Result<std::unique_ptr<kernels::GroupStart>> prepare(std::size_t process,
                                                       const kernels::Shard& shard,
                                                       const kernels::CommunicatorOptions& options);

  /// Connections between two processes: they break, and both know, or nothing passes any more.
  /// False when there is none.
  bool harm(std::size_t a, std::size_t b, bool silently);

 private:
  friend class RankCommunicator;
  class Start;
  struct Address {
    std::size_t process = 0;
    kernels::Shard shard;
    std::weak_ptr<Meeting::Presence> presence;
  };

  std::function<bool(std::size_t, std::size_t)> passes_;
  const std::uint64_t& now_ns_;
  std::map<std::string, Address> addresses_;
  std::map<std::vector<std::string>, std::weak_ptr<Meeting>> meetings_;
};

}  // namespace sluice::simulate
