#include "actors/rendezvous.hpp"

#include <chrono>
#include <cstring>
#include <utility>

namespace sluice::actors {

Rendezvous::Rendezvous(kernels::Shard shard, kernels::CommunicatorOptions options,
                       std::function<void(std::string)> tell, std::uint32_t timeout_ms)
    : shard_(shard),
      options_(std::move(options)),
      tell_(std::move(tell)),
      timeout_ms_(timeout_ms) {}

Result<std::shared_ptr<kernels::Communicator>> Rendezvous::meet() {
  auto prepared = kernels::prepare_tcp(shard_, options_);
  if (!prepared) return tl::unexpected(prepared.error());
  const auto& own = (*prepared)->address();
  std::string address(reinterpret_cast<const char*>(own.data()), own.size());
  kernels::GroupStart* start = prepared->get();
  {
    const std::lock_guard lock(mutex_);
    start_ = std::move(*prepared);
  }
  tell_(std::move(address));
  auto all = addresses();
  if (!all) return tl::unexpected(all.error());
  auto connected = start->connect(*all, timeout_ms_);
  const std::lock_guard lock(mutex_);
  if (!cancelled_.empty()) {
    if (connected) (*connected)->abort(cancelled_);
    return fail(ErrorCode::unavailable, "{}", cancelled_);
  }
  if (connected) communicator_ = *connected;
  return connected;
}

Result<std::vector<std::vector<std::byte>>> Rendezvous::addresses() {
  std::unique_lock lock(mutex_);
  const bool in_time = changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms_), [&] {
    return !addresses_.empty() || !cancelled_.empty();
  });
  if (!cancelled_.empty()) return fail(ErrorCode::unavailable, "{}", cancelled_);
  if (!in_time)
    return fail(ErrorCode::deadline,
                "rank {} of {} heard no other rank's address within {} ms: the leader has not all",
                shard_.rank, shard_.size, timeout_ms_);
  std::vector<std::vector<std::byte>> all;
  for (const auto& each : addresses_) {
    all.emplace_back(each.size());
    std::memcpy(all.back().data(), each.data(), each.size());
  }
  return all;
}

EngineLoader load_rank(RankLoader load, std::shared_ptr<Rendezvous> rendezvous) {
  return [load = std::move(load), rendezvous = std::move(rendezvous)](
             kernels::Completion completion) -> Result<LoadedEngine> {
    if (!rendezvous) return load(std::move(completion), nullptr);
    auto group = rendezvous->meet();
    if (!group) return tl::unexpected(group.error());
    return load(std::move(completion), *group);
  };
}

void Rendezvous::give(std::vector<std::string> addresses) {
  const std::lock_guard lock(mutex_);
  addresses_ = std::move(addresses);
  changed_.notify_all();
}

void Rendezvous::cancel(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (!cancelled_.empty()) return;
  cancelled_ = why;
  changed_.notify_all();
  if (communicator_)
    communicator_->abort(why);
  else if (start_)
    start_->cancel();
}

}  // namespace sluice::actors
