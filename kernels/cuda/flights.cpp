#include "kernels/cuda/flights.hpp"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "kernels/cuda/kernels.hpp"

namespace sluice::kernels::cuda {
namespace {

using Clock = std::chrono::steady_clock;

/// So often a step of a group looks whether the other ranks are still there.
constexpr std::chrono::milliseconds group_look_interval{1};

std::optional<Error> error_of(DrawStatus status) {
  switch (status) {
    case DrawStatus::drawn:
      return std::nullopt;
    case DrawStatus::none_allowed:
      return Error{ErrorCode::internal,
                   "no token is allowed: the mask, bias or minimum length rule out all", 0};
    case DrawStatus::all_nan:
      return Error{ErrorCode::internal,
                   "every logit is NaN: the weights or the KV cache are damaged", 0};
    case DrawStatus::misplaced:
      break;
  }
  SLUICE_ASSERT(status != DrawStatus::misplaced,
                "only a sequence's last token can be followed by a drawn one");
  return Error{ErrorCode::internal, "a drawn row of unknown status", 0};
}

SlotTokens to_tokens(SlotRef slot, const DrawnRow& row) {
  SlotTokens tokens;
  tokens.slot = slot;
  tokens.error = error_of(row.status);
  if (tokens.error) return tokens;
  tokens.tokens.push_back(row.token);
  if (row.logprob_count == 0) return tokens;
  auto& list = tokens.logprobs.emplace_back();
  for (std::uint32_t i = 0; i < row.logprob_count; ++i) {
    list.push_back({row.logprobs[i].token, row.logprobs[i].logprob});
  }
  return tokens;
}

/// Until the step's end, or the group's.
Result<void> wait_in_group(const Flight& flight, DeviceGroup& group) {
  for (auto looked = Clock::now();;) {
    const cudaError_t status = cudaEventQuery(flight.end.get());
    if (status == cudaSuccess) break;
    if (status != cudaErrorNotReady) return tl::unexpected(device_error(status, "a step"));
    std::this_thread::yield();
    const auto now = Clock::now();
    if (now - looked < group_look_interval) continue;
    looked = now;
    if (group.failure()) group.give_up();
  }
  if (auto why = group.failure()) return tl::unexpected(*why);
  return {};
}

}  // namespace

Result<void> Flights::start(int device) {
  device_ = device;
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    return fail(ErrorCode::unavailable, "cannot start a thread: {}", error.what());
  }
  return {};
}

void Flights::finish() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Flights::expect(Ticket ticket, std::span<const SlotRef> drawn) {
  const std::lock_guard lock(mutex_);
  Pending& pending = pending_.emplace_back();
  pending.result.ticket = ticket;
  pending.result.slots.resize(drawn.size());
  for (std::size_t i = 0; i < drawn.size(); ++i) pending.result.slots[i].slot = drawn[i];
}

std::unique_ptr<Flight> Flights::take() {
  const std::lock_guard lock(mutex_);
  if (landed_.empty()) return std::make_unique<Flight>();
  std::unique_ptr<Flight> flight = std::move(landed_.back());
  landed_.pop_back();
  return flight;
}

void Flights::send(std::unique_ptr<Flight> flight) {
  {
    const std::lock_guard lock(mutex_);
    if (flight->error) lose(*flight->error);
    flights_.push_back(std::move(flight));
  }
  wake_.notify_one();
}

std::optional<Error> Flights::lost() {
  const std::lock_guard lock(mutex_);
  if (!lost_ && group_ != nullptr) return group_->failure();
  return lost_;
}

Result<void> Flights::wait_idle() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return flights_.empty() && !waiting_; });
  if (lost_) return tl::unexpected(*lost_);
  return {};
}

Result<std::unique_ptr<DeviceGroup>> Flights::leave_group() {
  std::unique_lock lock(mutex_);
  leave_held_ = true;
  wake_.notify_one();
  idle_.wait(lock, [this] { return flights_.empty() && !waiting_ && !leave_held_; });
  if (lost_ && !lost_to_group_) return tl::unexpected(*lost_);
  lost_.reset();
  lost_to_group_ = false;
  return std::move(group_);
}

void Flights::enter_group(std::unique_ptr<DeviceGroup> group) {
  const std::lock_guard lock(mutex_);
  group_ = std::move(group);
}

void Flights::run() {
  cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return !flights_.empty() || leave_held_ || stop_; });
    if (flights_.empty() && leave_held_) {
      end_held(lock, "the step's group ended before its masks came");
      leave_held_ = false;
      idle_.notify_all();
      continue;
    }
    if (flights_.empty()) break;
    std::unique_ptr<Flight> flight = std::move(flights_.front());
    flights_.pop_front();
    waiting_ = true;
    DeviceGroup* const group = group_.get();  // let go of when no step is under way
    lock.unlock();
    const auto device_ns = land(*flight, group);
    lock.lock();
    enter(*flight, device_ns);
    landed_.push_back(std::move(flight));
    complete_done(lock);
    waiting_ = false;
    if (flights_.empty()) idle_.notify_all();
  }
  end_held(lock, "the backend closed before the step's masks came");
}

/// Waits for a flight's end: the time that the device took.
Result<std::uint64_t> Flights::land(const Flight& flight, DeviceGroup* group) {
  if (flight.error) return tl::unexpected(*flight.error);
  if (group != nullptr) SLUICE_TRY(wait_in_group(flight, *group));
  SLUICE_CUDA(cudaEventSynchronize(flight.end.get()));
  float ms = 0;
  SLUICE_CUDA(cudaEventElapsedTime(&ms, flight.begin.get(), flight.end.get()));
  return static_cast<std::uint64_t>(static_cast<double>(ms) * 1e6);
}

/// A landed flight's results, into its ticket's; with the lock held.
void Flights::enter(const Flight& flight, const Result<std::uint64_t>& device_ns) {
  const auto found = std::find_if(pending_.begin(), pending_.end(), [&](const Pending& p) {
    return p.result.ticket == flight.ticket && !p.done;
  });
  // A failed step was answered at once, and its masks may have been on their way by then.
  if (found == pending_.end() && lost_) return;
  SLUICE_ASSERT(found != pending_.end(), "masks for a step that was not held back");
  StepResult& result = found->result;
  if (!device_ns) {
    lose(device_ns.error());
    result.failed = true;
    result.error = device_ns.error();
    result.slots.clear();
    found->done = true;
    return;
  }
  result.device_ns += *device_ns;
  const auto* rows = flight.output.as<DrawnRow>();
  for (std::size_t i = 0; i < flight.drawn.size(); ++i) {
    SlotTokens tokens = to_tokens(flight.drawn[i], rows[i]);
    const auto entry = std::find_if(result.slots.begin(), result.slots.end(),
                                    [&](const SlotTokens& s) { return s.slot == tokens.slot; });
    if (entry != result.slots.end()) {
      *entry = std::move(tokens);
    } else {
      result.slots.push_back(std::move(tokens));
    }
  }
  found->done = flight.closes;
}

/// Tickets are answered in order: one that waits for its masks holds back those behind it.
void Flights::complete_done(std::unique_lock<std::mutex>& lock) {
  while (!pending_.empty() && pending_.front().done) {
    StepResult result = std::move(pending_.front().result);
    pending_.pop_front();
    lock.unlock();
    completion_(std::move(result));
    lock.lock();
  }
}

/// Fails the steps that wait for their masks.
void Flights::end_held(std::unique_lock<std::mutex>& lock, const char* why) {
  for (Pending& pending : pending_) {
    if (pending.done) continue;
    pending.done = true;
    pending.result.failed = true;
    pending.result.error = {ErrorCode::unavailable, why, 0};
  }
  complete_done(lock);
}

/// The first reason stays; with the lock held.
void Flights::lose(const Error& why) {
  if (lost_) return;
  lost_ = why;
  lost_to_group_ = group_ != nullptr && group_->failure().has_value();
}

}  // namespace sluice::kernels::cuda
