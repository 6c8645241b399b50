#include "actors/rendezvous.hpp"

#include <cstring>
#include <utility>

namespace sluice::actors {

Rendezvous::Rendezvous(std::unique_ptr<kernels::GroupStart> start, std::uint32_t timeout_ms)
    : start_(std::move(start)), timeout_ms_(timeout_ms) {}

std::string Rendezvous::address() const {
  const auto& own = start_->address();
  return {reinterpret_cast<const char*>(own.data()), own.size()};
}

Result<std::shared_ptr<kernels::Communicator>> Rendezvous::meet(
    const std::vector<std::string>& addresses) {
  std::vector<std::vector<std::byte>> all;
  for (const auto& each : addresses) {
    all.emplace_back(each.size());
    std::memcpy(all.back().data(), each.data(), each.size());
  }
  auto connected = start_->connect(all, timeout_ms_);
  const std::lock_guard lock(mutex_);
  if (!cancelled_.empty()) {
    if (connected) (*connected)->abort(cancelled_);
    return fail(ErrorCode::unavailable, "{}", cancelled_);
  }
  if (connected) communicator_ = *connected;
  return connected;
}

void Rendezvous::cancel(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (!cancelled_.empty()) return;
  cancelled_ = why;
  if (communicator_)
    communicator_->abort(why);
  else
    start_->cancel();
}

EngineLoader load_rank(RankLoader load, std::shared_ptr<Rendezvous> rendezvous,
                       std::vector<std::string> addresses) {
  return
      [load = std::move(load), rendezvous = std::move(rendezvous),
       addresses = std::move(addresses)](kernels::Completion completion) -> Result<LoadedEngine> {
        if (!rendezvous) return load(std::move(completion), nullptr);
        auto group = rendezvous->meet(addresses);
        if (!group) return tl::unexpected(group.error());
        return load(std::move(completion), *group);
      };
}

}  // namespace sluice::actors
