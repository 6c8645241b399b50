#include <algorithm>
#include <utility>

#include "engine/scheduler_state.hpp"

namespace sluice::engine {

// The next step: a row for every sequence that decodes, then prompt chunks of those that run, then
// whoever waits, in one order of precedence throughout.
std::optional<StepPlan> Scheduler::plan(Nanoseconds now) {
  State& s = *state_;
  s.expire(now);
  s.step_time.pass(now);
  if (s.in_flight.size() >= s.config.steps_in_flight) return std::nullopt;
  if (!s.in_flight.empty() && s.in_flight.back().owes_masks) return std::nullopt;

  StepPlan plan;
  StepInFlight step;
  plan.batch.segments.reserve(s.running.size() + 1);
  step.segments.reserve(s.running.size() + 1);
  s.rows_left = s.rows_free = s.config.rows_max;
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
  for (const PlannedRows& planned : step.segments) {
    step.rows += planned.rows;
    step.owes_masks = step.owes_masks || (planned.sample && s.tenant(planned.slot)->form);
  }
  plan.batch.sample_now = !step.owes_masks;
  s.in_flight.push_back(std::move(step));
  return plan;
}

// Only the last step can owe masks: none is planned behind it, for its rows' tokens come first.
std::optional<StepMasks> Scheduler::take_masks() {
  State& s = *state_;
  if (s.in_flight.empty() || !s.in_flight.back().owes_masks) return std::nullopt;
  StepInFlight& step = s.in_flight.back();
  StepMasks out{step.ticket, {}};
  for (const PlannedRows& rows : step.segments) {
    const Sequence* q = s.tenant(rows.slot);
    if (q != nullptr && rows.sample && q->form && q->known() < rows.end) return std::nullopt;
  }
  for (const PlannedRows& rows : step.segments) {
    Sequence* q = s.tenant(rows.slot);
    if (q == nullptr || !rows.sample) continue;  // over: its row sits out
    kernels::Mask& mask = out.masks.emplace_back();
    mask.slot = rows.slot;
    if (q->form) {
      mask.allowed = q->form->allowed(q->request.sampling,
                                      static_cast<std::uint32_t>(q->output.size()));
    }
  }
  step.owes_masks = false;
  return out;
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
    ++at;
    stop_waiting(q);
    shares.begin(q.tag);
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
// What a prompt's first token still needs may go beyond what keeps the step short.
void Scheduler::State::add_segment(Sequence& q, StepInFlight& step, Batch& batch) {
  const Path path = q.planned < q.prompt ? Path::prompt : Path::decode;
  const std::uint32_t border = path == Path::prompt ? q.prompt : q.length;
  const std::uint32_t wanted = border - q.planned;
  std::uint32_t rows = std::min(rows_left, wanted);
  if (path == Path::prompt && border == q.length && rows < wanted && wanted <= rows_free &&
      config.itl_target == 0 && step_time.pause(wanted - rows)) {
    rows = wanted;
  }
  const bool sample = q.planned + rows == q.length;
  batch.segments.push_back({q.slot, q.planned, rows, path, sample});
  q.planned += rows;
  step.segments.push_back({q.request.id, q.slot, rows, q.planned, sample});
  q.length += sample ? 1 : 0;
  rows_free -= rows;
  rows_left -= std::min(rows_left, rows);
}

// It waits again, and goes on later by recomputing what is known. Tokens underway are dropped with
// the slot's generation; they will come out the same.
void Scheduler::State::preempt(Sequence& q) {
  release(q);
  wait(q);
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

}  // namespace sluice::engine
