#include "engine/scheduler.hpp"

#include <algorithm>
#include <deque>
#include <set>
#include <unordered_map>
#include <utility>

#include "engine/detokenizer.hpp"
#include "engine/kv_blocks.hpp"
#include "engine/request_check.hpp"
#include "engine/step_time.hpp"

namespace sluice::engine {

using kernels::Batch;
using kernels::Path;
using kernels::Segment;
using kernels::SlotRef;

namespace {

// Tokens are counted from the prompt's first. `length` runs ahead of what is known: a token counts
// as soon as a plan samples it.
struct Sequence {
  Request request;
  std::uint64_t arrival = 0;
  std::uint32_t prompt = 0;        // its length
  std::uint32_t end = 0;           // length at which it is over
  std::vector<Token> output;       // known tokens, resumed ones first
  std::optional<TextStream> text;  // only with stop strings to look for
  std::vector<BlockHash> hashes;   // of the whole blocks of known tokens, as far as asked for
  SequenceTiming timing;
  Ticket answered = 0;             // step that yielded its latest token

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
};

// Who comes first in every queue: higher priority, then earlier arrival.
struct Before {
  bool operator()(const Sequence* a, const Sequence* b) const {
    const std::int32_t first = a->request.priority, second = b->request.priority;
    return first != second ? first > second : a->arrival < b->arrival;
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
  std::uint32_t decode_rows = 0;
  std::uint32_t rows = 0;
  std::vector<PlannedRows> segments;
};

}  // namespace

struct Scheduler::State {
  SchedulerConfig config;
  std::shared_ptr<const model::Tokenizer> tokenizer;
  std::uint32_t context_tokens;  // no sequence is longer, so that one alone always fits the pool
  KvBlocks blocks;
  PrefixCache cache;
  std::vector<Slot> slots;
  std::vector<kernels::SlotIndex> free_slots;
  std::vector<SlotRef> closing;  // for the next plan to close

  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences;
  std::set<Sequence*, Before> waiting;
  std::vector<Sequence*> running;  // sorted by Before
  std::set<std::pair<Nanoseconds, SequenceId>> deadlines;

  std::deque<StepInFlight> in_flight;
  StepTime step_time;
  std::uint32_t rows_left = 0;  // of the step being planned
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
  Result<void> check_deadline(const Request& request, Nanoseconds now) const;
  Result<void> refuse_overload();

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
  void expire(Nanoseconds now);

  void share_time(const StepInFlight& step, std::uint64_t device_ns);
  FinishReason absorb(Sequence& q, Token token);
  void yield(Sequence& q, const kernels::SlotTokens& gained, Nanoseconds now, Applied& out);
  void finish(Sequence& q, SequenceEvent event, Nanoseconds now, Applied& out);
  SequenceEvent ending(const Sequence& q, FinishReason reason, Error why) const;
};

Scheduler::State::State(const SchedulerConfig& given,
                        std::shared_ptr<const model::Tokenizer> vocabulary)
    : config(given),
      tokenizer(std::move(vocabulary)),
      context_tokens(static_cast<std::uint32_t>(std::min<std::uint64_t>(
          config.context_tokens, std::uint64_t{config.blocks} * config.block_tokens))),
      blocks(config.blocks),
      cache(config.blocks),
      slots(config.slots) {
  SLUICE_ASSERT(config.slots > 0 && config.rows_max > 0 && config.steps_in_flight > 0 &&
                    config.block_tokens > 0 && context_tokens > 1,
                "a scheduler needs slots, rows, steps and a context of two tokens or more");
  for (std::uint32_t slot = config.slots; slot > 0; --slot) free_slots.push_back(slot - 1);
}

Scheduler::Scheduler(SchedulerConfig config, std::shared_ptr<const model::Tokenizer> tokenizer)
    : state_(std::make_unique<State>(config, std::move(tokenizer))) {}

Scheduler::~Scheduler() = default;

// The next step: a row for every sequence that decodes, then prompt chunks of those that run, then
// whoever waits, in one order of precedence throughout.
std::optional<StepPlan> Scheduler::plan(Nanoseconds now) {
  State& s = *state_;
  s.expire(now);
  if (s.in_flight.size() >= s.config.steps_in_flight) return std::nullopt;

  StepPlan plan;
  StepInFlight step;
  plan.batch.segments.reserve(s.running.size() + 1);
  step.segments.reserve(s.running.size() + 1);
  s.rows_left = s.config.rows_max;
  s.plan_decodes(step, plan.batch);
  step.decode_rows = s.config.rows_max - s.rows_left;
  s.rows_left = std::min(s.rows_left, s.step_time.prompt_rows(step.decode_rows, s.config.itl_target,
                                                              s.config.rows_max));
  s.plan_chunks(step, plan.batch);
  s.admit(step, plan.batch, now);
  if (plan.batch.segments.empty() && s.closing.empty()) return std::nullopt;

  plan.batch.closes = std::exchange(s.closing, {});
  for (const SlotRef& ref : plan.batch.closes) s.free_slots.push_back(ref.slot);
  plan.ticket = ++s.counters.steps;
  step.ticket = plan.ticket;
  for (const PlannedRows& planned : step.segments) step.rows += planned.rows;
  s.in_flight.push_back(std::move(step));
  return plan;
}

// Whose token comes next needs a block now and then; when the pool has none, the last in precedence
// gives up its own. The first can always go on, so all end.
void Scheduler::State::plan_decodes(StepInFlight& step, Batch& batch) {
  for (std::size_t i = 0; i < running.size(); ++i) {
    Sequence& q = *running[i];
    if (!q.decodes() || !q.has_rows()) continue;
    while (i < running.size() && !grant(q, q.planned + 1, batch)) preempt(*running.back());
    if (i < running.size()) add_segment(q, step, batch);
  }
}

void Scheduler::State::plan_chunks(StepInFlight& step, Batch& batch) {
  for (Sequence* q : running) {
    if (rows_left == 0) return;
    if (!q->decodes()) add_segment(*q, step, batch);
  }
}

// In strict order: a small request does not overtake a large one, which else might never fit. Only
// who waits for another's prefix is passed over, and of these no more than there are slots, so that
// a flood of one prompt costs a plan no time.
void Scheduler::State::admit(StepInFlight& step, Batch& batch, Nanoseconds now) {
  std::uint32_t passed = 0;
  for (auto at = waiting.begin(); at != waiting.end() && passed <= config.slots;) {
    if (free_slots.empty() || rows_left == 0 || running.size() >= config.rows_max) return;
    Sequence& q = **at;
    auto cached = cached_blocks(q);
    if (worth_waiting(q, cached.size())) {
      ++at;
      ++passed;
      continue;
    }
    // One block is left for each that runs: it may soon want it, and to take it then would mean
    // preempting the one admitted last.
    const auto idle = static_cast<std::size_t>(
        std::ranges::count_if(cached, [&](auto block) { return blocks.holders(block) == 0; }));
    if (blocks.free() - idle < blocks_for(q.known()) - cached.size() + running.size()) return;
    at = waiting.erase(at);
    if (q.timing.started == 0) {
      q.timing.started = now;
      q.timing.cached_tokens = static_cast<std::uint32_t>(cached.size()) * config.block_tokens;
      counters.prompt_tokens += q.prompt;
      counters.cached_tokens += q.timing.cached_tokens;
    }
    open(q, std::move(cached), batch);
    add_segment(q, step, batch);
    running.insert(std::ranges::upper_bound(running, &q, Before{}), &q);
  }
}

// Of every whole block of known tokens.
void Scheduler::State::hash_blocks(Sequence& q) const {
  std::vector<Token> tokens;
  while (q.known() >= (q.hashes.size() + 1) * config.block_tokens) {
    const auto first = static_cast<std::uint32_t>(q.hashes.size()) * config.block_tokens;
    tokens.clear();
    for (std::uint32_t i = first; i < first + config.block_tokens; ++i)
      tokens.push_back(i < q.prompt ? q.request.prompt[i] : q.output[i - q.prompt]);
    const std::uint32_t prompt = config.paths_equal || q.prompt >= first + config.block_tokens
                                     ? config.block_tokens
                                     : q.prompt - std::min(q.prompt, first);
    q.hashes.push_back(
        block_hash(q.hashes.empty() ? *config.prefix_root : q.hashes.back(), tokens, prompt));
  }
}

// The pool's blocks that hold the sequence's first tokens. The last token is left out: its row
// yields the logits.
std::vector<std::uint32_t> Scheduler::State::cached_blocks(Sequence& q) const {
  std::vector<std::uint32_t> found;
  if (!config.prefix_root) return found;
  hash_blocks(q);
  const std::uint32_t most = (q.known() - 1) / config.block_tokens;
  while (found.size() < most) {
    const auto block = cache.find(q.hashes[found.size()]);
    if (!block) break;
    found.push_back(*block);
  }
  return found;
}

bool Scheduler::State::worth_waiting(const Sequence& q, std::size_t cached) const {
  return cached < (q.known() - 1) / config.block_tokens && cached < q.hashes.size() &&
         cache.announced(q.hashes[cached]);
}

// A step has computed the sequence's positions below `end`: its whole blocks are of use to others.
void Scheduler::State::enter(Sequence& q, std::uint32_t end) {
  if (!config.prefix_root) return;
  const std::uint32_t whole = end / config.block_tokens;
  if (whole <= q.computed) return;
  hash_blocks(q);
  for (; q.computed < whole; ++q.computed) {
    const BlockHash& hash = q.hashes[q.computed];
    if (q.computed < q.announced) cache.withdraw(hash);
    if (cache.insert(hash, q.blocks[q.computed])) blocks.keep(q.blocks[q.computed]);
  }
}

// What a sequence computed is not to be trusted.
void Scheduler::State::forget(const Sequence& q) {
  for (const std::uint32_t block : q.blocks) {
    if (!blocks.kept(block)) continue;
    cache.erase(block);
    blocks.give_up(block);
  }
}

std::uint32_t Scheduler::State::take_block() {
  const KvBlocks::Taken taken = blocks.take();
  if (taken.was_idle) cache.erase(taken.block);
  return taken.block;
}

void Scheduler::State::open(Sequence& q, std::vector<std::uint32_t> cached, Batch& batch) {
  const kernels::SlotIndex index = free_slots.back();
  free_slots.pop_back();
  q.slot = {index, ++slots[index].generation};
  slots[index].tenant = &q;
  for (const std::uint32_t block : cached) blocks.share(block);
  q.computed = static_cast<std::uint32_t>(cached.size());
  q.planned = q.computed * config.block_tokens;
  q.length = q.known();
  q.announced = q.computed;
  if (config.prefix_root) {
    for (; q.announced < q.hashes.size(); ++q.announced) cache.announce(q.hashes[q.announced]);
  }
  kernels::SlotOpen opened{q.slot, q.request.prompt, q.prompt, q.request.sampling};
  opened.tokens.insert(opened.tokens.end(), q.output.begin(), q.output.end());
  batch.opens.push_back(std::move(opened));
  if (!cached.empty()) batch.grants.push_back({index, 0, cached});
  q.blocks = std::move(cached);
  const bool granted = grant(q, q.length, batch);
  SLUICE_ASSERT(granted, "admission looked at the pool");
}

// Blocks for `tokens` positions, or none at all.
bool Scheduler::State::grant(Sequence& q, std::uint32_t tokens, Batch& batch) {
  const auto held = static_cast<std::uint32_t>(q.blocks.size());
  const std::uint32_t needed = blocks_for(tokens);
  if (needed <= held) return true;
  if (blocks.free() < needed - held) return false;
  for (std::uint32_t i = held; i < needed; ++i) q.blocks.push_back(take_block());
  batch.grants.push_back({q.slot.slot, held, {q.blocks.begin() + held, q.blocks.end()}});
  return true;
}

// Plans as many of a sequence's next positions as there are rows: prompt positions take the prompt
// path and generated ones the decode path (design section 6.6), so a segment ends at the border.
void Scheduler::State::add_segment(Sequence& q, StepInFlight& step, Batch& batch) {
  const Path path = q.planned < q.prompt ? Path::prompt : Path::decode;
  const std::uint32_t border = path == Path::prompt ? q.prompt : q.length;
  const std::uint32_t rows = std::min(rows_left, border - q.planned);
  const bool sample = q.planned + rows == q.length;
  batch.segments.push_back({q.slot, q.planned, rows, path, sample});
  q.planned += rows;
  step.segments.push_back({q.request.id, q.slot, rows, q.planned, sample});
  q.length += sample ? 1 : 0;
  rows_left -= rows;
}

// It waits again, and goes on later by recomputing what is known. Tokens underway are dropped with
// the slot's generation; they will come out the same.
void Scheduler::State::preempt(Sequence& q) {
  release(q);
  waiting.insert(&q);
  ++counters.preemptions;
}

// Frees what a running sequence holds. A device runs steps in order, so the next plan is behind all
// that name the sequence and may grant its blocks at once; its slot is free behind the close.
void Scheduler::State::release(Sequence& q) {
  for (std::uint32_t i = q.computed; i < q.announced; ++i) cache.withdraw(q.hashes[i]);
  q.announced = 0;
  // The last first: of what stays in the cache, a prefix is of use without what follows it.
  for (; !q.blocks.empty(); q.blocks.pop_back()) blocks.release(q.blocks.back());
  slots[q.slot.slot].tenant = nullptr;
  closing.push_back(q.slot);
  running.erase(std::ranges::lower_bound(running, &q, Before{}));
}

Result<void> Scheduler::submit(Request request, Nanoseconds now) {
  State& s = *state_;
  SLUICE_ASSERT(!s.sequences.contains(request.id), "a sequence id is never used twice");
  if (auto ok = check_request(request, s.tokenizer->size()); !ok) return ok;
  if (auto ok = s.check_length(request); !ok) return ok;
  if (s.waiting.size() >= s.config.queue_max) return s.refuse_overload();
  if (auto ok = s.check_deadline(request, now); !ok) return ok;

  auto owned = std::make_unique<Sequence>();
  Sequence& q = *owned;
  q.arrival = s.arrivals++;
  q.prompt = static_cast<std::uint32_t>(request.prompt.size());
  q.end = request.max_tokens > 0 ? q.prompt + request.max_tokens : s.context_tokens;
  q.timing.submitted = now;
  if (!request.stops.empty()) q.text.emplace(s.tokenizer, request);
  q.request = std::move(request);

  FinishReason reason = FinishReason::none;
  for (const Token token : q.request.resumed) {
    if (reason != FinishReason::none) {
      return fail(ErrorCode::bad_request, "the sequence ended with resumed token {} of {}",
                  q.output.size(), q.request.resumed.size());
    }
    reason = s.absorb(q, token);
  }
  s.sequences.emplace(q.request.id, std::move(owned));
  if (q.request.deadline) s.deadlines.emplace(*q.request.deadline, q.request.id);
  s.waiting.insert(&q);
  if (reason != FinishReason::none) s.finish(q, s.ending(q, reason, {}), now, s.pending);
  return {};
}

Result<void> Scheduler::State::check_length(const Request& request) const {
  const std::uint64_t asked = std::max<std::uint64_t>(
      {std::uint64_t{request.prompt.size()} + 1, request.prompt.size() + request.resumed.size(),
       std::uint64_t{request.prompt.size()} + request.max_tokens});
  if (asked <= context_tokens) return {};
  return fail(ErrorCode::too_long,
              "a prompt of {} tokens with an output of {} needs {}; {} holds {}. "
              "Shorten the prompt or lower max_tokens",
              request.prompt.size(), asked - request.prompt.size(), asked,
              context_tokens < config.context_tokens ? "the KV pool" : "the context",
              context_tokens);
}

// Prompts are computed in order of precedence; what this one shares with the cache comes for free,
// which is left out of account: whoever sets a deadline may be refused a little too early.
Result<void> Scheduler::State::check_deadline(const Request& request, Nanoseconds now) const {
  if (!request.deadline || *request.deadline <= now) return {};  // `expire` ends what is past it
  std::uint64_t ahead = request.prompt.size() + request.resumed.size();
  std::uint32_t decoding = 0;
  for (const Sequence* q : running) {
    decoding += q->decodes() ? 1 : 0;
    ahead += q->known() - std::min(q->known(), q->planned);
  }
  for (const Sequence* q : waiting)
    if (q->request.priority >= request.priority) ahead += q->known();
  const auto wait = static_cast<Nanoseconds>(
      step_time.prompt_ns(ahead, decoding, config.itl_target, config.rows_max));
  if (now + wait <= *request.deadline) return {};
  const auto late_ms = (now + wait - *request.deadline) / 1'000'000 + 1;
  auto refusal = fail(ErrorCode::overloaded,
                      "{} tokens of prompts come first, so that the first token would miss the "
                      "deadline by {} ms",
                      ahead - request.prompt.size(), late_ms);
  refusal.value().retry_after_ms =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(late_ms, 60'000));
  return refusal;
}

// Every refused caller is told when one more place should be free, so that not all return at once.
Result<void> Scheduler::State::refuse_overload() {
  constexpr std::uint64_t hint_ms_max = 60'000;
  const std::uint64_t hint_ms = ++refused * (end_gap / 1'000'000 + 1);
  auto refusal = fail(ErrorCode::overloaded, "{} sequences wait already", waiting.size());
  refusal.value().retry_after_ms = static_cast<std::uint32_t>(std::min(hint_ms, hint_ms_max));
  return refusal;
}

void Scheduler::cancel(SequenceId id, FinishReason reason, Error why, Nanoseconds now) {
  State& s = *state_;
  const auto found = s.sequences.find(id);
  if (found == s.sequences.end()) return;
  Sequence& q = *found->second;
  s.finish(q, s.ending(q, reason, std::move(why)), now, s.pending);
}

void Scheduler::State::expire(Nanoseconds now) {
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    Sequence& q = *sequences.at(deadlines.begin()->second);
    Error why{ErrorCode::deadline,
              fmt::format("the deadline passed after {} tokens", q.output.size()), 0};
    finish(q, ending(q, FinishReason::error, std::move(why)), now, pending);
  }
}

Applied Scheduler::apply(const StepResult& result, Nanoseconds now) {
  State& s = *state_;
  SLUICE_ASSERT(!s.in_flight.empty() && s.in_flight.front().ticket == result.ticket,
                "results come oldest first, one a plan");
  const StepInFlight step = std::move(s.in_flight.front());
  s.in_flight.pop_front();
  Applied out = take_events();
  s.share_time(step, result.device_ns);
  if (!result.failed) {
    s.step_time.add(step.decode_rows, step.rows - step.decode_rows, result.device_ns);
  }

  if (!result.failed) {
    for (const PlannedRows& rows : step.segments)
      if (Sequence* q = s.tenant(rows.slot)) s.enter(*q, rows.end);
    out.events.reserve(out.events.size() + result.slots.size());
    for (const kernels::SlotTokens& gained : result.slots) {
      Sequence* q = s.tenant(gained.slot);
      if (q == nullptr) continue;  // ended or preempted since: a surplus row
      q->answered = result.ticket;
      s.yield(*q, gained, now, out);
    }
  }
  for (const PlannedRows& rows : step.segments) {
    Sequence* q = s.tenant(rows.slot);
    if (q == nullptr) continue;
    if (result.failed) s.finish(*q, s.ending(*q, FinishReason::error, result.error), now, out);
    else SLUICE_ASSERT(!rows.sample || q->answered == result.ticket, "a sampled row owes a token");
  }
  return out;
}

// A step's time is divided by rows, whether or not a row's result was of use.
void Scheduler::State::share_time(const StepInFlight& step, std::uint64_t device_ns) {
  for (const PlannedRows& rows : step.segments) {
    Sequence* q = tenant(rows.slot);
    if (q == nullptr) {  // preempted, or gone
      const auto found = sequences.find(rows.id);
      if (found == sequences.end()) continue;
      q = found->second.get();
    }
    q->timing.device_ns += device_ns * rows.rows / step.rows;
  }
}

void Scheduler::State::yield(Sequence& q, const kernels::SlotTokens& gained, Nanoseconds now,
                             Applied& out) {
  if (gained.error) {
    forget(q);
    finish(q, ending(q, FinishReason::error, *gained.error), now, out);
    return;
  }
  SLUICE_ASSERT(gained.tokens.size() == 1, "plans count on one token a sampled row");
  SequenceEvent event = ending(q, FinishReason::none, {});
  event.tokens = gained.tokens;
  event.logprobs = gained.logprobs;
  event.finish = absorb(q, gained.tokens.front());
  if (q.text) event.text_bytes = q.text->stopped();
  if (q.timing.first_token == 0) q.timing.first_token = now;
  ++counters.tokens;
  if (event.finish == FinishReason::none) {
    out.events.push_back(std::move(event));
  } else {
    finish(q, std::move(event), now, out);
  }
}

// One more known token: the only place that decides that a sequence is complete.
FinishReason Scheduler::State::absorb(Sequence& q, Token token) {
  const SamplingParams& sampling = q.request.sampling;
  const auto index = static_cast<std::uint32_t>(q.output.size());
  q.output.push_back(token);
  if (ends_sequence(sampling.stop_tokens, sampling.min_tokens, index, token)) {
    return FinishReason::stop;
  }
  if (q.text) {
    q.text->push(token);
    if (q.text->stopped()) return FinishReason::stop;
  }
  return q.known() >= q.end ? FinishReason::length : FinishReason::none;
}

// A sequence's last event, wherever it was: all it holds is free for the next plan.
void Scheduler::State::finish(Sequence& q, SequenceEvent event, Nanoseconds now, Applied& out) {
  const SequenceId id = q.request.id;
  if (waiting.erase(&q) == 0) release(q);
  if (q.request.deadline) deadlines.erase({*q.request.deadline, id});
  if (last_end != 0) end_gap = (7 * end_gap + (now - last_end)) / 8;
  last_end = now;
  refused = 0;

  q.timing.finished = now;
  q.timing.prompt_tokens = q.prompt;
  q.timing.completion_tokens = static_cast<std::uint32_t>(q.output.size());
  out.events.push_back(std::move(event));
  out.finished.push_back({id, q.timing});
  sequences.erase(id);
}

SequenceEvent Scheduler::State::ending(const Sequence& q, FinishReason reason, Error why) const {
  SequenceEvent event;
  event.id = q.request.id;
  event.first_index = static_cast<std::uint32_t>(q.output.size());
  event.finish = reason;
  if (q.text) event.text_bytes = q.text->stopped();
  event.error = std::move(why);
  return event;
}

Applied Scheduler::take_events() { return std::exchange(state_->pending, {}); }

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = state_->counters;
  stats.waiting = static_cast<std::uint32_t>(state_->waiting.size());
  stats.running = static_cast<std::uint32_t>(state_->running.size());
  stats.blocks_free = state_->blocks.free();
  stats.blocks_total = state_->blocks.total();
  stats.blocks_cached = state_->blocks.idle();
  return stats;
}

}  // namespace sluice::engine
