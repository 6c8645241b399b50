#pragma once
// A device that runs plans in order and checks them: every row finds, in the blocks its slot was
// granted, exactly the keys that its earlier positions have, whoever wrote them. The next token is
// a hash of the tokens before it and the seed. What guards a device and a scheduler against other
// nodes' plans and results must pass all of these.

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/constraint.hpp"
#include "engine/plan_check.hpp"
#include "engine/scheduler.hpp"
#include "tests/engine/fake_tokenizer.hpp"

namespace sluice::engine::test {

/// A plan that a device could not run ends the test that made it.
inline void demand(bool holds, const char* fault) {
  if (!holds) throw std::logic_error(std::string("a plan ") + fault);
}

inline std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15ULL;
  return hash ^ (hash >> 29);
}

inline std::uint64_t hash_tokens(std::span<const Token> tokens, std::uint64_t seed) {
  std::uint64_t hash = mix(1, seed);
  for (const Token token : tokens) hash = mix(hash, token);
  return hash;
}

/// The sampler: letters, so that stop strings and stop tokens come up often; under a mask one of
/// those that it allows.
inline Token next_token(std::span<const Token> tokens, std::uint64_t seed,
                        std::span<const std::uint64_t> allowed = {}) {
  const std::uint64_t hash = mix(hash_tokens(tokens, seed), 7);
  if (allowed.empty()) return 'a' + static_cast<Token>(hash % 8);
  std::vector<Token> choices;
  for (Token token = 0; token < 64 * allowed.size(); ++token)
    if ((allowed[token / 64] >> (token % 64) & 1) != 0) choices.push_back(token);
  demand(!choices.empty(), "has a mask that allows nothing");
  return choices[hash % choices.size()];
}

/// What lies at the last of these positions: all tokens up to it decide it, and, where the two
/// paths differ, which of them were prompt.
inline std::uint64_t key_of(std::span<const Token> tokens, std::uint32_t prompt, bool paths_equal) {
  std::uint64_t hash = 2;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    hash = mix(hash, tokens[i] + (paths_equal || i < prompt ? 0 : 1'000'000));
  return hash;
}

class FakeDevice {
 public:
  explicit FakeDevice(const SchedulerConfig& config,
                      std::uint32_t vocabulary = fake_tokenizer()->size())
      : config_(config),
        slots_(config.slots),
        owners_(config.blocks),
        cells_(std::size_t{config.blocks} * config.block_tokens, 0),
        plans_(config, vocabulary),
        results_(vocabulary) {}

  /// Runs one plan. With `fail` nothing is computed; sampled slots in `broken` yield an error of
  /// their own. Either way these slots yield nothing but errors from then on. A plan that does not
  /// sample now needs its masks: rows without one sit out.
  StepResult run(const StepPlan& plan, bool fail = false, std::set<std::uint32_t> broken = {},
                 const StepMasks* masks = nullptr) {
    const kernels::Batch& batch = plan.batch;
    demand(batch.sample_now == (masks == nullptr), "and its masks do not go together");
    demand(masks == nullptr || masks->ticket == plan.ticket, "has another's masks");
    accept(plans_.take(plan));
    results_.planned(plan);
    if (masks != nullptr) {
      accept(plans_.take(*masks));
      results_.planned(*masks);
    }
    for (const kernels::SlotOpen& open : batch.opens) {
      Slot& slot = slots_.at(open.slot.slot);
      demand(!slot.open, "opens a slot that is open");
      demand(open.slot.generation > slot.generation, "repeats a slot's generation");
      demand(open.prompt_tokens <= open.tokens.size(), "counts too much as prompt");
      slot = {true,        false, open.slot.generation, open.prompt_tokens, open.sampling.seed,
              open.tokens, {}};
    }
    for (const kernels::BlockGrant& grant : batch.grants) {
      Slot& slot = slots_.at(grant.slot);
      demand(slot.open, "grants blocks to a closed slot");
      demand(grant.first_block == slot.blocks.size(), "leaves a hole in a block table");
      for (const std::uint32_t block : grant.blocks) {
        slot.blocks.push_back(block);
        owners_.at(block) = {grant.slot, slot.generation};
      }
    }
    StepResult result;
    result.ticket = plan.ticket;
    std::set<std::uint32_t> named;
    std::uint32_t rows = 0;
    for (const kernels::Segment& segment : batch.segments) {
      demand(named.insert(segment.slot.slot).second, "names a slot twice");
      rows += segment.rows;
      Slot& slot = slots_.at(segment.slot.slot);
      demand(slot.open && slot.generation == segment.slot.generation, "names a closed slot");
      if (fail || (segment.sample && broken.contains(segment.slot.slot))) slot.broken = true;
      const kernels::Mask* mask = nullptr;
      if (masks != nullptr) {
        const auto found = std::ranges::find(masks->masks, segment.slot, &kernels::Mask::slot);
        if (found != masks->masks.end()) mask = &*found;
      }
      const bool sits_out = masks != nullptr && mask == nullptr;
      if (!fail) compute(segment, slot, sits_out, mask, result);
    }
    demand(rows <= config_.rows_max, "has too many rows");
    for (const kernels::SlotRef& close : batch.closes) {
      Slot& slot = slots_.at(close.slot);
      demand(slot.open && slot.generation == close.generation, "closes a closed slot");
      demand(!named.contains(close.slot), "closes a slot that it runs");
      slot.open = false;
    }
    result.device_ns = 1000 * rows;
    result.failed = fail;
    if (fail) result.error = {ErrorCode::internal, "the device was lost", 0};
    accept(results_.take(result));
    return result;
  }

  bool all_closed() const {
    return std::ranges::none_of(slots_, [](const Slot& slot) { return slot.open; });
  }

 private:
  static void accept(const Result<void>& checked) {
    if (!checked) demand(false, ("is refused: " + checked.error().message).c_str());
  }

  struct Slot {
    bool open = false;
    bool broken = false;
    std::uint32_t generation = 0;
    std::uint32_t prompt = 0;
    std::uint64_t seed = 0;
    std::vector<Token> tokens;
    std::vector<std::uint32_t> blocks;
  };

  std::uint64_t& cell(const Slot& slot, std::uint32_t position) {
    const std::uint32_t block = slot.blocks.at(position / config_.block_tokens);
    return cells_[std::size_t{block} * config_.block_tokens + position % config_.block_tokens];
  }

  std::uint64_t key(const Slot& slot, std::uint32_t position) const {
    return key_of(std::span(slot.tokens).first(position + 1), slot.prompt, config_.paths_equal);
  }

  void compute(const kernels::Segment& segment, Slot& slot, bool sits_out,
               const kernels::Mask* mask, StepResult& result) {
    if (slot.broken) {
      const Error error{ErrorCode::internal, "every logit is NaN", 0};
      if (segment.sample && !sits_out) result.slots.push_back({segment.slot, {}, {}, error});
      return;
    }
    demand(segment.rows >= 1, "has a segment without rows");
    const std::uint32_t end = segment.position + segment.rows;
    demand(end <= slot.tokens.size(), "runs ahead of the tokens");
    for (std::uint32_t p = segment.position; p < end; ++p) {
      demand((segment.path == kernels::Path::prompt) == (p < slot.prompt), "takes a wrong path");
      demand(owners_.at(slot.blocks.at(p / config_.block_tokens)) == segment.slot,
             "writes to a block that is another's");
      cell(slot, p) = key(slot, p);
    }
    for (std::uint32_t p = 0; p < segment.position; ++p) {
      demand(cell(slot, p) == key(slot, p), "reads keys that are not the sequence's");
    }
    demand(segment.sample == (end == slot.tokens.size()), "samples elsewhere than at the end");
    if (!segment.sample || sits_out) return;
    std::span<const std::uint64_t> allowed;
    if (mask != nullptr) allowed = mask->allowed;
    slot.tokens.push_back(next_token(slot.tokens, slot.seed, allowed));
    demand(slot.tokens.size() <= config_.context_tokens, "goes beyond the context");
    result.slots.push_back({segment.slot, {slot.tokens.back()}, {}, {}});
  }

  SchedulerConfig config_;
  std::vector<Slot> slots_;
  std::vector<kernels::SlotRef> owners_;  // of each block: the slot it was granted to last
  std::vector<std::uint64_t> cells_;      // what lies at each position of the pool
  PlanCheck plans_;
  ResultCheck results_;
};

/// What a request yields when it is alone: the definition, without batches or blocks.
struct Alone {
  std::vector<Token> tokens;
  FinishReason finish = FinishReason::none;
  std::optional<std::uint64_t> text_bytes;
};

inline Alone run_alone(const Request& request, std::uint32_t context_tokens,
                       std::optional<ConstrainedText> form = {}) {
  Alone alone;
  std::vector<Token> all = request.prompt;
  std::string text;
  while (true) {
    TokenBits allowed;
    if (form)
      allowed = form->allowed(request.sampling, static_cast<std::uint32_t>(alone.tokens.size()));
    const Token token = next_token(all, request.sampling.seed, allowed);
    all.push_back(token);
    alone.tokens.push_back(token);
    const bool counts = alone.tokens.size() > request.sampling.min_tokens;
    if (counts && std::ranges::count(request.sampling.stop_tokens, token) > 0) {
      alone.finish = FinishReason::stop;
      return alone;
    }
    text.push_back(static_cast<char>(token));
    std::size_t longest = 0;
    for (const std::string& stop : request.stops) {
      if (text.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0 && alone.tokens.size() >= request.sampling.min_tokens) {
      alone.finish = FinishReason::stop;
      alone.text_bytes = text.size() - longest;
      return alone;
    }
    if (form) form->push(token);
    if (form && form->complete()) {
      alone.finish = FinishReason::stop;
      return alone;
    }
    if (alone.tokens.size() == request.max_tokens || all.size() == context_tokens) {
      alone.finish = FinishReason::length;
      return alone;
    }
  }
}

}  // namespace sluice::engine::test
