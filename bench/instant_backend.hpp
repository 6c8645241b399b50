#pragma once
// A device that costs nothing: its next token is a function of the tokens before it and the seed,
// so the right stream is known in advance. Holds results back on demand, to let a test look
// between.

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/backend.hpp"

namespace sluice::bench {

/// The token that follows `tokens`: a letter 'a'..'z' of the byte vocabulary, or, where a mask says
/// which may come, one of these.
inline Token next_token(const std::vector<Token>& tokens, std::uint64_t seed,
                        std::span<const std::uint64_t> allowed = {}) {
  std::uint64_t hash = 0xcbf29ce484222325ULL ^ seed;
  for (const Token token : tokens) hash = (hash ^ token) * 0x100000001b3ULL;
  hash ^= hash >> 29;
  if (allowed.empty()) return 'a' + static_cast<Token>(hash % 26);
  std::vector<Token> choices;
  for (Token token = 0; token < 64 * allowed.size(); ++token)
    if ((allowed[token / 64] >> (token % 64) & 1) != 0) choices.push_back(token);
  SLUICE_ASSERT(!choices.empty(), "a mask allows something");
  return choices[hash % choices.size()];
}

class InstantBackend : public kernels::Backend {
 public:
  /// With `hold`, results wait for `release`; else `submit` completes at once.
  InstantBackend(kernels::Completion completion, bool hold)
      : completion_(std::move(completion)), hold_(hold) {
    device_.backend = "instant";
    device_.device = "none";
    device_.arithmetic = "hash";
    device_.paths_equal = true;
    device_.threads = 1;
    device_.queues_steps = hold;
    device_.memory_free_bytes = std::size_t{1} << 30;
  }

  const kernels::DeviceInfo& device() const override { return device_; }
  Result<kernels::Weight> load(const kernels::HostTensor&) override { return kernels::Weight{}; }
  Result<void> allocate(const kernels::PoolShape&) override { return {}; }
  Result<kernels::ProgramId> record(const kernels::StepProgram&) override {
    return kernels::ProgramId{};
  }
  Result<double> read_bandwidth(std::size_t) override { return 0.0; }
  Result<void> read(kernels::ProgramId, kernels::Buffer, std::span<float>) override { return {}; }

  void submit(kernels::ProgramId, kernels::Ticket ticket, kernels::Batch batch) override {
    if (die_next_) throw std::runtime_error("the device was lost on purpose");
    for (auto& open : batch.opens)
      slots_[open.slot.slot] = {std::move(open.tokens), open.sampling.seed};
    kernels::StepResult result;
    result.ticket = ticket;
    result.device_ns = 1000 * batch.segments.size();
    waiting_.clear();
    for (const auto& segment : batch.segments) {
      auto& slot = slots_.at(segment.slot.slot);
      rows_ += segment.rows;
      SLUICE_ASSERT(segment.position + segment.rows <= slot.tokens.size(),
                    "a plan reads only tokens that are there");
      if (!segment.sample) continue;
      slot.tokens.resize(segment.position + segment.rows);
      if (batch.sample_now) draw(segment.slot, {}, result);
      else waiting_.push_back(segment.slot);
    }
    if (std::exchange(fail_next_, false)) {
      result.failed = true;
      result.error = {ErrorCode::internal, "the step failed on purpose", 0};
    }
    if (batch.sample_now) complete(std::move(result));
    else half_done_ = std::move(result);
  }

  void sample(kernels::Ticket ticket, std::vector<kernels::Mask> masks) override {
    SLUICE_ASSERT(half_done_.ticket == ticket, "masks are for the last step submitted");
    for (const kernels::Mask& mask : masks) {
      SLUICE_ASSERT(std::erase(waiting_, mask.slot) == 1, "a mask is for a row that waits");
      draw(mask.slot, mask.allowed, half_done_);
    }
    complete(std::move(half_done_));
  }

  /// Completes the oldest held step; false when there is none.
  bool release() {
    if (held_.empty()) return false;
    auto result = std::move(held_.front());
    held_.pop_front();
    completion_(std::move(result));
    return true;
  }

  /// Rows submitted so far.
  std::uint64_t rows() const { return rows_; }

  void fail_next() { fail_next_ = true; }

  /// The next submit throws: the executor that called it ends.
  void die_next() { die_next_ = true; }

 private:
  struct Slot {
    std::vector<Token> tokens;
    std::uint64_t seed = 0;
  };

  void draw(const kernels::SlotRef& ref, std::span<const std::uint64_t> allowed,
            kernels::StepResult& result) {
    auto& slot = slots_.at(ref.slot);
    const Token token = next_token(slot.tokens, slot.seed, allowed);
    slot.tokens.push_back(token);
    kernels::SlotTokens tokens;
    tokens.slot = ref;
    tokens.tokens = {token};
    result.slots.push_back(std::move(tokens));
  }

  void complete(kernels::StepResult result) {
    if (result.failed) result.slots.clear();
    if (hold_)
      held_.push_back(std::move(result));
    else
      completion_(std::move(result));
  }

  kernels::Completion completion_;
  kernels::DeviceInfo device_;
  std::map<kernels::SlotIndex, Slot> slots_;
  std::deque<kernels::StepResult> held_;
  kernels::StepResult half_done_;           // waits for its masks
  std::vector<kernels::SlotRef> waiting_;   // its rows
  bool hold_ = false;
  std::uint64_t rows_ = 0;
  bool fail_next_ = false;
  bool die_next_ = false;
};

}  // namespace sluice::bench
