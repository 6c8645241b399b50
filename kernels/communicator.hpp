#pragma once
// What the ranks of a tensor-parallel group say to each other inside a step. Sums are taken in rank
// order (design section 6.7): ((r0 + r1) + r2) + ..., so that a value's bits depend neither on a
// message's size nor on which rank asks.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::kernels {

/// A rank's place in its group.
struct Shard {
  std::uint32_t rank = 0;
  std::uint32_t size = 1;

  bool operator==(const Shard&) const = default;
};

/// Where rank `rank`'s part of `count` things begins: parts lie side by side in rank order and
/// differ by one at most. Rank `size` is the end of the last one's.
constexpr std::uint32_t shard_begin(std::uint32_t count, std::uint32_t rank, std::uint32_t size) {
  return static_cast<std::uint32_t>(std::uint64_t{count} * rank / size);
}

/// How many of them are this rank's.
constexpr std::uint32_t shard_count(std::uint32_t count, const Shard& shard) {
  return shard_begin(count, shard.rank + 1, shard.size) -
         shard_begin(count, shard.rank, shard.size);
}

/// The collectives of one rank. Every rank calls the same ones in the same order with the same
/// sizes, from one thread at a time. Memory is that of the group's backends: the host's for CPUs.
///
/// A collective fails when a rank is gone, when `abort` was called here or there, or at its
/// deadline: `unavailable` or `deadline`, with this rank, the operation and the rank it waited for.
/// After a failure nothing is known of the other ranks' state: every later collective fails the
/// same way, and the group starts anew with new communicators. What the memory then holds is
/// undefined.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual Shard shard() const = 0;

  /// For people: "tcp, 3 ranks".
  virtual std::string name() const = 0;

  /// values[i] becomes the sum of all ranks' values[i], in rank order.
  virtual Result<void> all_reduce(std::span<float> values) = 0;

  /// `all` becomes every rank's `own`, in rank order: all.size() == size * own.size(). `own` may
  /// lie in its place in `all`.
  virtual Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all) = 0;

  /// `values` becomes what rank `root` has there.
  virtual Result<void> broadcast(std::span<std::byte> values, std::uint32_t root) = 0;

  /// Makes the collective that is running, and every later one, fail with `why`; the other ranks'
  /// fail too. Any thread, at any time, more than once; does not wait.
  virtual void abort(std::string_view why) = 0;

  /// Why every later collective fails, if it does. Any thread: for who waits for a device, and not
  /// in a collective.
  virtual std::optional<Error> failure() const = 0;
};

struct CommunicatorOptions {
  /// An address of this host that the other ranks reach. Between two on loopback what passes is
  /// plain, elsewhere each message is encrypted and authenticated by keys of its connection.
  std::string host = "127.0.0.1";
  /// Longest that a collective waits for the others. A rank whose process died is noticed at once;
  /// this is for one that stands still, or whose host is gone.
  std::uint32_t deadline_ms = 10'000;
  /// Encrypts on loopback too. One rank's wish is enough.
  bool seal_loopback = false;
};

/// A group starts in two steps, so that any rendezvous can carry what the ranks must know of each
/// other: each rank makes one of these and hands out its `address()`; with all of them, in rank
/// order, each calls `connect`.
class GroupStart {
 public:
  virtual ~GroupStart() = default;

  virtual Shard shard() const = 0;

  /// Opaque, below 64 KiB; holds a secret by which ranks know each other and from which their keys
  /// come: whoever reads it on its way can read and alter what the ranks say. Good for one connect.
  virtual const std::vector<std::byte>& address() const = 0;

  /// Waits until every other rank has connected too, and proven that it knows the addresses'
  /// secrets. `bad_request` for addresses of another group,
  /// count or version; `deadline` names the ranks that did not come within `timeout_ms`;
  /// `unavailable` one that refused or left, or that `cancel` was called. Once.
  virtual Result<std::shared_ptr<Communicator>> connect(
      std::span<const std::vector<std::byte>> addresses, std::uint32_t timeout_ms) = 0;

  /// Ends a `connect` that waits, and lets none begin. Any thread.
  virtual void cancel() = 0;
};

/// The group of one: every collective is done already.
std::shared_ptr<Communicator> make_local_communicator();

/// The address, in digits, of a host's name or of itself. May wait for a name server, seconds long.
/// `bad_request` for a name that has none.
Result<std::string> resolve_host(const std::string& host);

/// Begins a group of processes on CPUs, over TCP. `bad_request` for a rank that is not below the
/// size, or for a host that is none of this machine's addresses, or a name; `io` when the system
/// refuses a socket. Waits for nothing.
Result<std::unique_ptr<GroupStart>> prepare_tcp(const Shard& shard,
                                                const CommunicatorOptions& options = {});

}  // namespace sluice::kernels
