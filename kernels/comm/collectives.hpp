#pragma once
// Collectives in rank order, over whatever carries pieces between ranks.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/communicator.hpp"

namespace sluice::kernels::comm {

/// Longest piece. Large enough that a round's start does not count, small enough that what has
/// arrived is added while it is in the cache.
inline constexpr std::size_t piece_floats = std::size_t{16} << 10;
inline constexpr std::size_t piece_bytes = piece_floats * sizeof(float);

/// Cuts collectives into rounds, in each of which every rank sends a piece to each of the others
/// and receives one from each. Whether all send all to all, or each rank adds a part, changes no
/// bit: both add in rank order.
class Collectives : public Communicator {
 public:
  Shard shard() const override { return shard_; }

  Result<void> all_reduce(std::span<float> values) override;
  Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all) override;
  Result<void> broadcast(std::span<std::byte> values, std::uint32_t root) override;

 protected:
  explicit Collectives(const Shard& shard);

  /// What one round moves; entries by rank, this rank's own unused. Empty: nothing.
  struct Round {
    std::vector<std::span<const std::byte>> send;
    std::vector<std::span<std::byte>> receive;
  };

  /// Runs a round. After an error every later call must give one too.
  virtual Result<void> trade(const Round& round) = 0;

  /// A collective begins: its deadline runs.
  virtual void begin(const char* operation) = 0;

 private:
  Result<void> gather_and_add(std::span<float> values);
  Result<void> add_parts(std::span<float> values);
  Result<void> gather_parts(std::span<const std::span<std::byte>> parts);
  std::span<float> arrived(std::uint32_t rank, std::size_t floats);
  void add(std::span<float> own);

  Shard shard_;
  Round round_;
  std::vector<float> arrivals_;  ///< a piece of each rank's
  std::vector<std::span<std::byte>> parts_;
};

}  // namespace sluice::kernels::comm
