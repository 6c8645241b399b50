#pragma once
// What a scheduler keeps, for its own sources: scheduler_admission (what comes in), scheduler_plan
// (which rows run) and scheduler (what came of them).

#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/constraint.hpp"
#include "engine/detokenizer.hpp"
#include "engine/fair_share.hpp"
#include "engine/kv_blocks.hpp"
#include "engine/scheduler.hpp"
#include "engine/step_time.hpp"

namespace sluice::engine {

using kernels::Batch;
using kernels::Path;
using kernels::Segment;
using kernels::SlotRef;

// Tokens are counted from the prompt's first. `length` runs ahead of what is known: a token counts
// as soon as a plan samples it.
struct Sequence {
  Request request;
  FairShare::Tag tag = 0;
  std::uint64_t arrival = 0;
  std::uint32_t prompt = 0;        // its length
  std::uint32_t end = 0;           // length at which it is over
  std::vector<Token> output;       // known tokens, resumed ones first
  std::optional<TextStream> text;  // only with stop strings to look for
  std::optional<ConstrainedText> form;  // only with a constraint
  std::vector<BlockHash> hashes;   // of the whole blocks of known tokens, as far as asked for
  SequenceTiming timing;
  Ticket answered = 0;             // step that yielded its latest token
  std::uint32_t losses = 0;        // devices lost under it since it gained a token

  // Meaningful while it runs.
  SlotRef slot;
  std::vector<std::uint32_t> blocks;
  std::uint32_t announced = 0;     // blocks at whose hashes others wait: [cached, announced)
  std::uint32_t computed = 0;      // blocks that are in the cache, or were there before
  std::uint32_t planned = 0;       // positions planned
  std::uint32_t length = 0;        // tokens known or underway

  std::uint32_t known() const { return prompt + static_cast<std::uint32_t>(output.size()); }
  bool decodes() const { return planned >= prompt && planned + 1 == length; }
  bool has_rows() const { return length < end; }
  // Tokens that its tenant is charged for beforehand.
  std::uint64_t expected() const { return prompt + std::uint64_t{request.max_tokens}; }
};

// Who comes first in every queue: higher priority, then whose tenant had less, then earlier
// arrival.
struct Before {
  bool operator()(const Sequence* a, const Sequence* b) const {
    const std::int32_t first = a->request.priority, second = b->request.priority;
    if (first != second) return first > second;
    return a->tag != b->tag ? a->tag < b->tag : a->arrival < b->arrival;
  }
};

struct Slot {
  std::uint32_t generation = 0;
  Sequence* tenant = nullptr;
};

struct PlannedRows {
  SequenceId id = 0;
  SlotRef slot;
  std::uint32_t rows = 0;
  std::uint32_t end = 0;  // position after the last
  bool sample = false;
};

struct StepInFlight {
  Ticket ticket = 0;
  bool owes_masks = false;  // its second half has not been asked for
  std::uint32_t decode_rows = 0;
  std::uint32_t rows = 0;
  std::vector<PlannedRows> segments;
};

struct Scheduler::State {
  SchedulerConfig config;
  std::shared_ptr<const model::Tokenizer> tokenizer;
  std::uint32_t context_tokens;  // no sequence is longer, so that one alone always fits the pool
  KvBlocks blocks;
  PrefixCache cache;
  ConstraintCache constraints;
  std::vector<Slot> slots;
  std::vector<kernels::SlotIndex> free_slots;
  std::vector<SlotRef> closing;  // for the next plan to close

  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences;
  std::set<Sequence*, Before> waiting;
  std::unordered_map<std::string, std::uint32_t> waiting_of;  // by tenant
  FairShare shares;
  std::vector<Sequence*> running;  // sorted by Before
  std::set<std::pair<Nanoseconds, SequenceId>> deadlines;

  std::deque<StepInFlight> in_flight;
  Ticket lost = 0;              // plans up to this one ran on devices that are lost
  StepTime step_time{config.prompt_rows_min};
  std::uint32_t rows_free = 0;  // of the step being planned: what `rows_max` leaves
  std::uint32_t rows_left = 0;  // and what of it prompts may have
  Applied pending;              // events that arose outside `apply`
  std::uint64_t arrivals = 0;
  SchedulerStats counters;

  // For the retry hint: smoothed time between two ends, and who was refused since the last.
  Nanoseconds end_gap = 1'000'000'000;
  Nanoseconds last_end = 0;
  std::uint32_t refused = 0;

  State(const SchedulerConfig& given, std::shared_ptr<const model::Tokenizer> vocabulary);

  std::uint32_t blocks_for(std::uint32_t tokens) const {
    return (tokens + config.block_tokens - 1) / config.block_tokens;
  }
  Sequence* tenant(const SlotRef& ref) const {
    const Slot& slot = slots[ref.slot];
    return slot.generation == ref.generation ? slot.tenant : nullptr;
  }

  Result<void> check_length(const Request& request) const;
  Result<void> check_deadline(const Sequence& q, Nanoseconds now) const;
  Result<void> check_queue(const Request& request);

  void wait(Sequence& q);
  void stop_waiting(Sequence& q);

  void hash_blocks(Sequence& q) const;
  std::vector<std::uint32_t> cached_blocks(Sequence& q) const;
  bool worth_waiting(const Sequence& q, std::size_t cached) const;
  void enter(Sequence& q, std::uint32_t end);
  void forget(const Sequence& q);
  std::uint32_t take_block();

  void plan_decodes(StepInFlight& step, Batch& batch);
  void plan_chunks(StepInFlight& step, Batch& batch);
  void admit(StepInFlight& step, Batch& batch, Nanoseconds now);
  void open(Sequence& q, std::vector<std::uint32_t> cached, Batch& batch);
  bool grant(Sequence& q, std::uint32_t tokens, Batch& batch);
  void add_segment(Sequence& q, StepInFlight& step, Batch& batch);

  void preempt(Sequence& q);
  void release(Sequence& q);
  void free_all_slots();
  void expire(Nanoseconds now);

  void share_time(const StepInFlight& step, std::uint64_t device_ns);
  FinishReason absorb(Sequence& q, Token token);
  void yield(Sequence& q, const kernels::SlotTokens& gained, Nanoseconds now, Applied& out);
  void finish(Sequence& q, SequenceEvent event, Nanoseconds now, Applied& out);
  SequenceEvent ending(const Sequence& q, FinishReason reason, Error why) const;
};

}  // namespace sluice::engine
