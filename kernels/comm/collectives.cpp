#include "kernels/comm/collectives.hpp"

#include <algorithm>
#include <cstring>

namespace sluice::kernels::comm {
namespace {

// Up to here every rank sends all to all and adds for itself: one round, where adding parts takes
// two of fewer bytes. Two ranks send the same bytes either way.
constexpr std::size_t gather_floats_max = std::size_t{8} << 10;

template <class T>
std::span<T> piece(std::span<T> all, std::size_t at, std::size_t length) {
  if (at >= all.size()) return {};
  return all.subspan(at, std::min(length, all.size() - at));
}

}  // namespace

Collectives::Collectives(const Shard& shard)
    : shard_(shard), arrivals_(shard.size * piece_floats), parts_(shard.size) {
  round_.send.resize(shard.size);
  round_.receive.resize(shard.size);
}

Result<void> Collectives::all_reduce(std::span<float> values) {
  begin("all_reduce");
  if (shard_.size == 2 || values.size() <= gather_floats_max) return gather_and_add(values);
  return add_parts(values);
}

Result<void> Collectives::all_gather(std::span<const std::byte> own, std::span<std::byte> all) {
  SLUICE_ASSERT(all.size() == own.size() * shard_.size, "every rank's part, and no more");
  begin("all_gather");
  for (std::uint32_t r = 0; r < shard_.size; ++r) {
    parts_[r] = all.subspan(r * own.size(), own.size());
  }
  if (!own.empty() && parts_[shard_.rank].data() != own.data()) {
    std::memcpy(parts_[shard_.rank].data(), own.data(), own.size());
  }
  return gather_parts(parts_);
}

Result<void> Collectives::broadcast(std::span<std::byte> values, std::uint32_t root) {
  SLUICE_ASSERT(root < shard_.size, "a root outside the group");
  begin("broadcast");
  for (std::size_t at = 0; at < values.size(); at += piece_bytes) {
    const auto now = piece(values, at, piece_bytes);
    for (std::uint32_t r = 0; r < shard_.size; ++r) {
      round_.send[r] = root == shard_.rank ? now : std::span<std::byte>{};
      round_.receive[r] = r == root ? now : std::span<std::byte>{};
    }
    if (auto done = trade(round_); !done) return done;
  }
  return {};
}

Result<void> Collectives::gather_and_add(std::span<float> values) {
  for (std::size_t at = 0; at < values.size(); at += piece_floats) {
    const std::span<float> now = piece(values, at, piece_floats);
    for (std::uint32_t r = 0; r < shard_.size; ++r) {
      round_.send[r] = std::as_bytes(now);
      round_.receive[r] = std::as_writable_bytes(arrived(r, now.size()));
    }
    if (auto done = trade(round_); !done) return done;
    add(now);
  }
  return {};
}

/// Part r of the values is rank r's to add, and to hand to the others.
Result<void> Collectives::add_parts(std::span<float> values) {
  const auto count = static_cast<std::uint32_t>(values.size());
  std::size_t longest = 0;
  for (std::uint32_t r = 0; r < shard_.size; ++r) {
    const std::span<float> part = values.subspan(shard_begin(count, r, shard_.size),
                                                 shard_count(count, {r, shard_.size}));
    parts_[r] = std::as_writable_bytes(part);
    longest = std::max(longest, part.size());
  }
  const std::span<float> own = values.subspan(shard_begin(count, shard_.rank, shard_.size),
                                              shard_count(count, shard_));
  for (std::size_t at = 0; at < longest; at += piece_floats) {
    const std::span<float> now = piece(own, at, piece_floats);
    for (std::uint32_t r = 0; r < shard_.size; ++r) {
      round_.send[r] = piece(parts_[r], at * sizeof(float), piece_bytes);
      round_.receive[r] = std::as_writable_bytes(arrived(r, now.size()));
    }
    if (auto done = trade(round_); !done) return done;
    add(now);
  }
  return gather_parts(parts_);
}

/// Every rank hands its part to the others.
Result<void> Collectives::gather_parts(std::span<const std::span<std::byte>> parts) {
  std::size_t longest = 0;
  for (const auto& part : parts) longest = std::max(longest, part.size());
  for (std::size_t at = 0; at < longest; at += piece_bytes) {
    for (std::uint32_t r = 0; r < shard_.size; ++r) {
      round_.send[r] = piece(parts[shard_.rank], at, piece_bytes);
      round_.receive[r] = piece(parts[r], at, piece_bytes);
    }
    if (auto done = trade(round_); !done) return done;
  }
  return {};
}

std::span<float> Collectives::arrived(std::uint32_t rank, std::size_t floats) {
  return {arrivals_.data() + rank * piece_floats, floats};
}

/// This rank's piece becomes the sum of all ranks', in rank order.
void Collectives::add(std::span<float> own) {
  float* here = own.data();
  float* sum = shard_.rank == 0 ? here : arrived(0, own.size()).data();
  for (std::uint32_t r = 1; r < shard_.size; ++r) {
    const float* next = r == shard_.rank ? here : arrived(r, own.size()).data();
    for (std::size_t i = 0; i < own.size(); ++i) sum[i] += next[i];
  }
  if (sum != here && !own.empty()) std::memcpy(here, sum, own.size_bytes());
}

}  // namespace sluice::kernels::comm
