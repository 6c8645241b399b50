#include "kernels/cpu/packed_weights.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

namespace sluice::kernels::cpu {
namespace {

// Of a file, packed at a time by one thread: little enough for a core's second-level cache, and
// that all end together; enough that the call that reads it does not count.
constexpr std::size_t pack_bytes = std::size_t{256} << 10;

/// Strips [first, last) of a weight.
struct Stretch {
  const CpuWeight* weight = nullptr;
  PackedWeight* packed = nullptr;
  std::uint32_t first = 0;
  std::uint32_t last = 0;
};

/// `read`: room to be used again.
Result<void> pack(const Stretch& stretch, std::vector<std::byte>& read) {
  const auto& [weight, packed, first, last] = stretch;
  const std::size_t strip_bytes = weight->row_stride * strip_rows;  // in the file
  const std::byte* rows = weight->data + first * strip_bytes;
  if (weight->source) {
    const std::size_t bytes =
        (weight->rows - 1) * weight->row_stride + row_bytes(weight->format, weight->cols);
    read.resize(std::max(read.size(), (last - first) * strip_bytes));
    const std::size_t end = std::min(bytes, last * strip_bytes);
    auto done = weight->source.read(rows, std::span(read).first(end - first * strip_bytes));
    if (!done) return done;
    rows = read.data();
  }
  for (std::uint32_t strip = first; strip < last; ++strip) {
    packed->fill(strip, rows + (strip - first) * strip_bytes, weight->row_stride);
  }
  return {};
}

Result<void> pack_all(const std::vector<Stretch>& stretches, ThreadPool& pool) {
  std::atomic<std::size_t> next{0};
  std::mutex failing;
  Result<void> done;
  pool.run([&](std::uint32_t) {
    std::vector<std::byte> read;
    for (std::size_t i = next++; i < stretches.size(); i = next++) {
      // Whoever else starts meanwhile is one thread, and would be last: this work can be any's.
      // No Breather, which would take so long a guest for another program.
      std::this_thread::yield();
      auto packed_one = pack(stretches[i], read);
      if (packed_one) continue;
      const std::lock_guard lock(failing);
      done = std::move(packed_one);
      return;
    }
  });
  return done;
}

}  // namespace

Result<void> PackedWeights::add(std::span<CpuWeight* const> weights, ThreadPool& pool) {
  if (weights.empty()) return {};
  std::vector<PackedWeight> packed;
  std::vector<Stretch> stretches;
  std::size_t bytes = 0;
  for (const CpuWeight* weight : weights) {
    bytes += packed.emplace_back(PackedWeight::of(*weight)).bytes();
  }
  const auto place = [&](std::uint8_t* at) {
    for (PackedWeight& each : packed) each.data = std::exchange(at, at + each.bytes());
  };
  const auto accept = [&](Mapping&& pages) {
    pages_.push_back(std::move(pages));
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i]->packed = &packed_.emplace_back(packed[i]);
    }
  };

  const std::string name = cache_.keeps() ? weight_file_name(weights) : std::string();
  auto kept = cache_.find(name, bytes, pool);
  if (kept.pages) {
    place(kept.pages->as<std::uint8_t>());
    accept(std::move(*kept.pages));
    return {};
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto each =
        static_cast<std::uint32_t>(pack_bytes / (weights[i]->row_stride * strip_rows) + 1);
    for (std::uint32_t first = 0; first < packed[i].strips(); first += each) {
      stretches.push_back(
          {weights[i], &packed[i], first, std::min(packed[i].strips(), first + each)});
    }
  }
  if (auto draft = name.empty() || kept.is_there ? std::nullopt : cache_.begin(bytes)) {
    place(draft->pages.as<std::uint8_t>());
    if (auto done = pack_all(stretches, pool); !done) return done;
    if (weight_file_name(weights) == name && cache_.keep(*draft, name, pool)) {
      accept(std::move(draft->pages));
      return {};
    }
  }
  auto pages = ZeroPages::make(bytes, "the weights' packed form");
  if (!pages) return tl::unexpected(pages.error());
  pages->want_huge_pages();
  place(pages->as<std::uint8_t>());
  if (auto done = pack_all(stretches, pool); !done) return done;
  accept(std::move(*pages));
  return {};
}

}  // namespace sluice::kernels::cpu
