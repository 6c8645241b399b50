// The group of one rank: nothing to wait for, nothing to add.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>

#include "kernels/communicator.hpp"

namespace sluice::kernels {
namespace {

class LocalCommunicator final : public Communicator {
 public:
  Shard shard() const override { return {}; }
  std::string name() const override { return "one rank"; }

  Result<void> all_reduce(std::span<float>) override { return check("all_reduce"); }

  Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all) override {
    SLUICE_ASSERT(all.size() == own.size(), "one rank's part is the whole");
    if (!own.empty() && own.data() != all.data()) {
      std::memmove(all.data(), own.data(), own.size());
    }
    return check("all_gather");
  }

  Result<void> broadcast(std::span<std::byte>, std::uint32_t root) override {
    SLUICE_ASSERT(root == 0, "the group has one rank");
    return check("broadcast");
  }

  void abort(std::string_view why) override {
    const std::lock_guard lock(mutex_);
    if (aborted_.load(std::memory_order_relaxed)) return;
    why_ = why;
    aborted_.store(true, std::memory_order_release);
  }

  std::optional<Error> failure() const override {
    if (!aborted_.load(std::memory_order_acquire)) return std::nullopt;
    return aborted("a step");
  }

 private:
  Result<void> check(const char* operation) {
    if (!aborted_.load(std::memory_order_acquire)) return {};
    return tl::unexpected(aborted(operation));
  }

  Error aborted(const char* operation) const {
    const std::lock_guard lock(mutex_);
    return {ErrorCode::unavailable, fmt::format("rank 0 of 1: {}: aborted: {}", operation, why_),
            0};
  }

  std::atomic<bool> aborted_{false};
  mutable std::mutex mutex_;
  std::string why_;
};

}  // namespace

std::shared_ptr<Communicator> make_local_communicator() {
  return std::make_shared<LocalCommunicator>();
}

}  // namespace sluice::kernels
