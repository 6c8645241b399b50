#include "engine/plan_check.hpp"

#include <algorithm>

#include "engine/request_check.hpp"

namespace sluice::engine {

Result<void> check_config(const SchedulerConfig& config) {
  constexpr std::uint32_t slots_most = 65536, blocks_most = 1U << 26;
  const auto context = std::min<std::uint64_t>(config.context_tokens,
                                               std::uint64_t{config.blocks} * config.block_tokens);
  if (config.slots == 0 || config.slots > slots_most || config.rows_max == 0 ||
      config.steps_in_flight == 0 || config.block_tokens == 0 || config.blocks > blocks_most ||
      context < 2)
    return fail(ErrorCode::bad_request,
                "a device of {} slots, {} rows a step, {} blocks of {} tokens and a context of {} "
                "is none to plan for",
                config.slots, config.rows_max, config.blocks, config.block_tokens,
                config.context_tokens);
  return {};
}

PlanCheck::PlanCheck(const SchedulerConfig& config, std::uint32_t vocabulary)
    : config_(config), vocabulary_(vocabulary), slots_(config.slots) {}

Result<PlanCheck::Slot*> PlanCheck::find(kernels::SlotRef ref) {
  if (ref.slot >= slots_.size() || !slots_[ref.slot].open ||
      slots_[ref.slot].generation != ref.generation)
    return fail(ErrorCode::bad_request, "slot {} of generation {} is not open", ref.slot,
                ref.generation);
  return &slots_[ref.slot];
}

Result<void> PlanCheck::open(const kernels::SlotOpen& open) {
  const auto index = open.slot.slot;
  if (index >= slots_.size() || slots_[index].open)
    return fail(
        ErrorCode::bad_request, "slot {} cannot be opened: it is {}", index,
        index < slots_.size() ? "open" : fmt::format("beyond the engine's {}", slots_.size()));
  if (open.tokens.empty() || open.tokens.size() > config_.context_tokens ||
      open.prompt_tokens > open.tokens.size())
    return fail(ErrorCode::bad_request,
                "slot {} opens with {} tokens, {} of them the prompt's; the context holds {}",
                index, open.tokens.size(), open.prompt_tokens, config_.context_tokens);
  for (const Token token : open.tokens)
    if (token >= vocabulary_)
      return fail(ErrorCode::bad_request, "slot {} opens with token {}; the vocabulary has {}",
                  index, token, vocabulary_);
  if (auto sound = check_sampling(open.sampling, vocabulary_); !sound) return sound;
  slots_[index] = {
      open.slot.generation, true, false, static_cast<std::uint32_t>(open.tokens.size()), 0, 0};
  return {};
}

Result<void> PlanCheck::grant(const kernels::BlockGrant& grant) {
  if (grant.slot >= slots_.size() || !slots_[grant.slot].open)
    return fail(ErrorCode::bad_request, "blocks are granted to slot {}, which is not open",
                grant.slot);
  Slot& slot = slots_[grant.slot];
  const std::uint64_t end = std::uint64_t{grant.first_block} + grant.blocks.size();
  const std::uint64_t most =
      (std::uint64_t{config_.context_tokens} + config_.block_tokens - 1) / config_.block_tokens;
  if (grant.first_block > slot.blocks || end > most)
    return fail(ErrorCode::bad_request,
                "slot {} has {} blocks and is granted those from {} to {}; a context has {}",
                grant.slot, slot.blocks, grant.first_block, end, most);
  for (const auto block : grant.blocks)
    if (block >= config_.blocks)
      return fail(ErrorCode::bad_request, "slot {} is granted block {}; the pool has {}",
                  grant.slot, block, config_.blocks);
  slot.blocks = std::max(slot.blocks, static_cast<std::uint32_t>(end));
  return {};
}

Result<void> PlanCheck::place(const kernels::Segment& segment, Ticket ticket, bool sample_now) {
  const auto found = find(segment.slot);
  if (!found) return tl::unexpected(found.error());
  Slot& slot = **found;
  const std::uint64_t end = std::uint64_t{segment.position} + segment.rows;
  const auto refuse = [&](std::string_view why) {
    return fail(ErrorCode::bad_request, "rows {} to {} of slot {}: {}", segment.position, end,
                segment.slot.slot, why);
  };
  if (slot.planned == ticket) return refuse("the step has rows of this slot already");
  if (slot.held) return refuse("its last row waits for a mask");
  if (segment.rows == 0 || end > config_.context_tokens) return refuse("the context ends before");
  if (end > slot.tokens) return refuse("no step has drawn their tokens");
  if (end > std::uint64_t{slot.blocks} * config_.block_tokens)
    return refuse("their blocks were not granted");
  if (segment.sample && end != slot.tokens)
    return refuse("a token is drawn behind the last one only");
  slot.planned = ticket;
  if (!segment.sample) return {};
  if (sample_now)
    ++slot.tokens;
  else
    slot.held = true;
  return {};
}

Result<void> PlanCheck::take(const StepPlan& plan) {
  const auto& batch = plan.batch;
  if (plan.ticket <= last_)
    return fail(ErrorCode::bad_request, "step {} follows step {}", plan.ticket, last_);
  if (owes_masks_)
    return fail(ErrorCode::bad_request, "step {} comes before the masks of step {}", plan.ticket,
                last_);
  last_ = plan.ticket;
  for (const auto& each : batch.opens)
    if (auto good = open(each); !good) return good;
  for (const auto& each : batch.grants)
    if (auto good = grant(each); !good) return good;
  std::uint64_t rows = 0;
  for (const auto& segment : batch.segments) {
    rows += segment.rows;
    if (auto good = place(segment, plan.ticket, batch.sample_now); !good) return good;
    owes_masks_ = owes_masks_ || (segment.sample && !batch.sample_now);
  }
  if (rows > config_.rows_max)
    return fail(ErrorCode::bad_request, "step {} has {} rows; the engine takes {}", plan.ticket,
                rows, config_.rows_max);
  if (!batch.sample_now && !owes_masks_)
    return fail(ErrorCode::bad_request, "step {} waits for masks, and draws nothing", plan.ticket);
  for (const auto& ref : batch.closes) {
    const auto slot = find(ref);
    if (!slot) return tl::unexpected(slot.error());
    (*slot)->open = false;
  }
  return {};
}

Result<void> PlanCheck::take(const StepMasks& masks) {
  if (!owes_masks_ || masks.ticket != last_)
    return fail(ErrorCode::bad_request, "masks come for step {}, which waits for none",
                masks.ticket);
  owes_masks_ = false;
  for (const auto& mask : masks.masks) {
    if (mask.slot.slot >= slots_.size())
      return fail(ErrorCode::bad_request, "a mask is for slot {}; the engine has {}",
                  mask.slot.slot, slots_.size());
    if (mask.allowed.size() > (std::size_t{vocabulary_} + 63) / 64)
      return fail(ErrorCode::bad_request, "a mask has {} words; the vocabulary has {} tokens",
                  mask.allowed.size(), vocabulary_);
    const auto slot = find(mask.slot);
    if (!slot || !(*slot)->held) continue;  // over: its row sits out
    (*slot)->held = false;
    ++(*slot)->tokens;
  }
  return {};
}

void ResultCheck::planned(const StepPlan& plan) {
  Step& step = steps_.emplace_back();
  step.ticket = plan.ticket;
  for (const auto& segment : plan.batch.segments)
    if (segment.sample) step.rows.push_back({segment.slot, plan.batch.sample_now});
}

void ResultCheck::planned(const StepMasks& masks) {
  for (auto& step : steps_) {
    if (step.ticket != masks.ticket) continue;
    for (auto& row : step.rows)
      row.owes =
          std::ranges::any_of(masks.masks, [&](const auto& mask) { return mask.slot == row.slot; });
  }
}

Result<void> ResultCheck::take(const StepResult& result) {
  if (steps_.empty() || steps_.front().ticket != result.ticket)
    return fail(ErrorCode::bad_request, "a result of step {} came; {}", result.ticket,
                steps_.empty() ? "none is underway"
                               : fmt::format("that of step {} was due", steps_.front().ticket));
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  if (result.failed) return {};
  const auto refuse = [&](kernels::SlotRef slot, std::string_view why) {
    return fail(ErrorCode::bad_request, "the result of step {} for slot {}: {}", result.ticket,
                slot.slot, why);
  };
  std::vector<bool> answered(step.rows.size());
  for (std::size_t i = 0; i < result.slots.size(); ++i) {
    const auto& got = result.slots[i];
    // In the plan's order, as backends answer; else wherever it is.
    std::size_t at = i;
    if (at >= step.rows.size() || step.rows[at].slot != got.slot)
      at = static_cast<std::size_t>(std::ranges::find(step.rows, got.slot, &Row::slot) -
                                    step.rows.begin());
    if (at == step.rows.size()) return refuse(got.slot, "it drew nothing in that step");
    if (answered[at]) return refuse(got.slot, "it is answered twice");
    answered[at] = true;
    if (got.error) continue;
    if (got.tokens.size() != (step.rows[at].owes ? 1 : 0))
      return refuse(got.slot, fmt::format("it has {} tokens", got.tokens.size()));
    if (!got.tokens.empty() && got.tokens.front() >= vocabulary_)
      return refuse(got.slot, fmt::format("token {} is beyond the vocabulary", got.tokens.front()));
    if (!got.logprobs.empty() && got.logprobs.size() != got.tokens.size())
      return refuse(got.slot, "its logprobs are not its tokens'");
  }
  for (std::size_t i = 0; i < step.rows.size(); ++i)
    if (step.rows[i].owes && !answered[i]) return refuse(step.rows[i].slot, "it is missing");
  return {};
}

}  // namespace sluice::engine
