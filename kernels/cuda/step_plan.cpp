#include "kernels/cuda/step_plan.hpp"

#include <algorithm>

namespace sluice::kernels::cuda {
namespace {

// Eight times what a request may ask for (transport's limits); 96 KiB a slot.
constexpr std::uint32_t list_entries = 8192;

std::size_t whole16(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

/// Appends parts to a step's bytes, each at a multiple of 16.
class Writer {
 public:
  explicit Writer(std::vector<std::byte>& bytes) : bytes_(bytes) {
    bytes_.assign(whole16(sizeof(StepHeader)), std::byte{0});
  }

  /// Where the next part will lie.
  std::uint32_t offset() const { return static_cast<std::uint32_t>(bytes_.size()); }

  template <class T>
  std::uint32_t add(const T* items, std::size_t count) {
    const std::uint32_t at = offset();
    if (count == 0) return at;
    bytes_.resize(whole16(bytes_.size() + count * sizeof(T)));
    std::memcpy(bytes_.data() + at, items, count * sizeof(T));
    return at;
  }

  template <class T>
  std::uint32_t add(const std::vector<T>& items) {
    return add(items.data(), items.size());
  }

  void finish(const StepHeader& header) { std::memcpy(bytes_.data(), &header, sizeof header); }

 private:
  std::vector<std::byte>& bytes_;
};

std::uint32_t count_of(std::size_t size) { return static_cast<std::uint32_t>(size); }

StepOpen write_open(const SlotOpen& open, Writer& writer) {
  const SamplingParams& s = open.sampling;
  StepOpen out;
  out.slot = open.slot.slot;
  out.token_count = count_of(open.tokens.size());
  out.prompt_tokens = open.prompt_tokens;
  out.tokens = writer.add(open.tokens);
  out.temperature = s.temperature;
  out.top_k = s.top_k;
  out.top_p = s.top_p;
  out.min_p = s.min_p;
  out.repetition = s.repetition_penalty;
  out.presence = s.presence_penalty;
  out.frequency = s.frequency_penalty;
  out.min_tokens = s.min_tokens;
  out.seed = s.seed;
  out.logprobs = s.logprobs;
  std::vector<TokenBias> biases;
  for (const auto& [token, bias] : s.logit_bias) biases.push_back({token, bias});
  out.bias_count = count_of(biases.size());
  out.bias = writer.add(biases);
  out.stop_count = count_of(s.stop_tokens.size());
  out.stops = writer.add(s.stop_tokens);
  return out;
}

/// What a row takes that is drawn by these: whole rows where other tokens must be known one by one.
Draw draw_of(const SamplingParams& s, std::uint32_t vocabulary) {
  const bool races = s.temperature != 0.0F;
  const bool cuts = races && ((s.top_k > 0 && s.top_k < vocabulary) || s.top_p < 1.0F);
  if (cuts || s.logprobs > 0) return Draw::whole;
  return races || s.logprobs == 0 ? Draw::candidates : Draw::peaks;
}

std::uint32_t block_capacity(const PoolShape& pool) {
  return (pool.context_tokens + pool.block_tokens - 1) / pool.block_tokens;
}

}  // namespace

std::uint32_t list_capacity(const PoolShape&) { return list_entries; }

std::size_t step_bytes_max(const PoolShape& pool) {
  const std::size_t lists =
      whole16(list_entries * sizeof(TokenBias)) + whole16(list_entries * sizeof(Token));
  const std::size_t mask = whole16((pool.vocabulary + 63) / 64 * sizeof(std::uint64_t));
  const std::size_t slot = whole16(pool.context_tokens * sizeof(Token)) + lists +
                           whole16(sizeof(StepOpen)) + whole16(sizeof(StepGrant)) +
                           whole16(block_capacity(pool) * sizeof(std::uint32_t)) + mask +
                           sizeof(HeldRow) + 2 * sizeof(std::uint32_t);
  return pool.slots * slot + pool.rows_max * (sizeof(StepRow) + sizeof(RowGroup)) + 1024;
}

SlotMirror::SlotMirror(const PoolShape& pool) : pool_(pool), slots_(pool.slots) {
  for (Slot& slot : slots_) slot.blocks.assign(block_capacity(pool), pool.blocks);
}

void SlotMirror::open(const SlotOpen& open) {
  SLUICE_ASSERT(open.slot.slot < slots_.size(), "a slot out of range");
  Slot& slot = slots_[open.slot.slot];
  SLUICE_ASSERT(!slot.open, "a slot opened twice");
  SLUICE_ASSERT(open.tokens.size() <= pool_.context_tokens, "a sequence longer than the context");
  SLUICE_ASSERT(open.prompt_tokens <= open.tokens.size(), "more prompt than tokens");
  SLUICE_ASSERT(open.sampling.logit_bias.size() <= list_entries &&
                    open.sampling.stop_tokens.size() <= list_entries,
                "more biases or stop tokens than a slot has room for");
  SLUICE_ASSERT(open.sampling.logprobs <= static_cast<std::int32_t>(logprobs_max),
                "more logprobs than a row has room for");
  slot.ref = open.slot;
  slot.open = true;
  slot.held = false;
  slot.draw = draw_of(open.sampling, pool_.vocabulary);
}

void SlotMirror::grant(const BlockGrant& grant) {
  SLUICE_ASSERT(grant.slot < slots_.size(), "a slot out of range");
  Slot& slot = slots_[grant.slot];
  SLUICE_ASSERT(grant.first_block + grant.blocks.size() <= slot.blocks.size(),
                "a grant beyond the context");
  for (const std::uint32_t block : grant.blocks) {
    SLUICE_ASSERT(block < pool_.blocks, "a block out of range");
  }
  std::copy(grant.blocks.begin(), grant.blocks.end(), slot.blocks.begin() + grant.first_block);
}

void SlotMirror::close(SlotRef ref) {
  at(ref);
  Slot& slot = slots_[ref.slot];
  slot.open = false;
  slot.held = false;
  std::fill(slot.blocks.begin(), slot.blocks.end(), pool_.blocks);
}

void SlotMirror::check(const Segment& segment) const {
  const Slot& slot = at(segment.slot);
  const std::uint32_t end = segment.position + segment.rows;
  SLUICE_ASSERT(segment.rows >= 1 && end <= pool_.context_tokens, "a segment beyond the context");
  for (std::uint32_t block = segment.position / pool_.block_tokens;
       block <= (end - 1) / pool_.block_tokens; ++block) {
    SLUICE_ASSERT(slot.blocks[block] < pool_.blocks, "a segment in a block never granted");
  }
}

void SlotMirror::hold(SlotRef ref) {
  at(ref);
  slots_[ref.slot].held = true;
}

bool SlotMirror::release(SlotRef ref) {
  SLUICE_ASSERT(ref.slot < slots_.size(), "a slot out of range");
  Slot& slot = slots_[ref.slot];
  if (!slot.open || slot.ref != ref || !slot.held) return false;
  slot.held = false;
  return true;
}

const SlotMirror::Slot& SlotMirror::at(SlotRef ref) const {
  SLUICE_ASSERT(ref.slot < slots_.size(), "a slot out of range");
  const Slot& slot = slots_[ref.slot];
  SLUICE_ASSERT(slot.open && slot.ref == ref, "a slot that is not open, or of another generation");
  return slot;
}

void plan_batch(const Batch& batch, const PoolShape& pool, const DeviceState& state,
                SlotMirror& slots, StepPlan& plan) {
  Writer writer(plan.bytes);
  std::vector<StepOpen> opens;
  for (const SlotOpen& open : batch.opens) {
    slots.open(open);
    opens.push_back(write_open(open, writer));
  }
  std::vector<StepGrant> grants;
  for (const BlockGrant& grant : batch.grants) {
    slots.grant(grant);
    grants.push_back(
        {grant.slot, grant.first_block, count_of(grant.blocks.size()), writer.add(grant.blocks)});
  }
  std::vector<StepRow> rows;
  std::vector<std::uint32_t> sampled;
  std::vector<RowGroup> singles, groups;
  std::uint32_t longest = 0, splits = 0;
  Draw draw = batch.sample_now ? Draw::peaks : Draw::hold;
  plan.drawn.clear();
  for (const Segment& segment : batch.segments) {
    slots.check(segment);
    const std::uint32_t first = count_of(rows.size());
    SLUICE_ASSERT(first + segment.rows <= pool.rows_max, "more rows than rows_max");
    for (std::uint32_t i = 0; i < segment.rows; ++i) {
      rows.push_back({segment.slot.slot, segment.position + i});
    }
    const std::uint32_t slot = segment.slot.slot, position = segment.position;
    if (segment.rows == 1) {
      singles.push_back({first, 1, slot, position, splits});
      longest = std::max(longest, position + 1);
      splits += split_count(position + 1, state.split_tokens);
    }
    for (std::uint32_t i = 0; segment.rows > 1 && i < segment.rows; i += group_rows) {
      const std::uint32_t count = std::min(group_rows, segment.rows - i);
      groups.push_back({first + i, count, slot, position + i, 0});
    }
    if (!segment.sample) continue;
    sampled.push_back(count_of(rows.size()) - 1);
    plan.drawn.push_back(segment.slot);
    draw = std::min(draw, slots.draw(segment.slot));
    if (!batch.sample_now) slots.hold(segment.slot);
  }
  StepHeader header;
  header.rows = count_of(rows.size());
  header.sampled = count_of(sampled.size());
  header.groups = count_of(singles.size() + groups.size());
  header.single_groups = count_of(singles.size());
  header.opens = count_of(opens.size());
  header.grants = count_of(grants.size());
  header.row_offset = writer.add(rows);
  header.sampled_offset = writer.add(sampled);
  singles.insert(singles.end(), groups.begin(), groups.end());
  header.group_offset = writer.add(singles);
  header.open_offset = writer.add(opens);
  header.grant_offset = writer.add(grants);
  writer.finish(header);
  plan.opens = header.opens;
  plan.grants = header.grants;
  plan.held = 0;
  plan.counts = {header.rows, header.sampled, header.groups, header.single_groups, 0, draw};
  // Slots that share blocks may have more than there is room for: then each walks all of its own.
  if (splits <= state.splits_max) {
    plan.counts.splits = split_count(longest, state.split_tokens);
  }
  for (const SlotRef& ref : batch.closes) slots.close(ref);
}

void plan_masks(std::span<const Mask> masks, SlotMirror& slots, StepPlan& plan) {
  Writer writer(plan.bytes);
  std::vector<HeldRow> held;
  plan.drawn.clear();
  for (const Mask& mask : masks) {
    if (!slots.release(mask.slot)) continue;
    held.push_back({mask.slot.slot, writer.add(mask.allowed), count_of(mask.allowed.size()), 0});
    plan.drawn.push_back(mask.slot);
  }
  StepHeader header;
  header.held = count_of(held.size());
  header.held_offset = writer.add(held);
  writer.finish(header);
  plan.opens = plan.grants = 0;
  plan.held = header.held;
  plan.counts = {};
}

}  // namespace sluice::kernels::cuda
