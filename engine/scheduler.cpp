#include "engine/scheduler.hpp"

#include <algorithm>
#include <utility>

#include "engine/scheduler_state.hpp"

namespace sluice::engine {

Scheduler::State::State(const SchedulerConfig& given,
                        std::shared_ptr<const model::Tokenizer> vocabulary)
    : config(given),
      tokenizer(std::move(vocabulary)),
      context_tokens(static_cast<std::uint32_t>(std::min<std::uint64_t>(
          config.context_tokens, std::uint64_t{config.blocks} * config.block_tokens))),
      blocks(config.blocks),
      cache(config.blocks),
      constraints(tokenizer),
      slots(config.slots) {
  SLUICE_ASSERT(config.slots > 0 && config.rows_max > 0 && config.steps_in_flight > 0 &&
                    config.block_tokens > 0 && context_tokens > 1,
                "a scheduler needs slots, rows, steps and a context of two tokens or more");
  free_all_slots();
}

void Scheduler::State::free_all_slots() {
  free_slots.clear();
  for (std::uint32_t slot = config.slots; slot > 0; --slot) free_slots.push_back(slot - 1);
}

Scheduler::Scheduler(SchedulerConfig config, std::shared_ptr<const model::Tokenizer> tokenizer)
    : state_(std::make_unique<State>(config, std::move(tokenizer))) {}

Scheduler::~Scheduler() = default;

void Scheduler::cancel(SequenceId id, FinishReason reason, Error why, Nanoseconds now) {
  State& s = *state_;
  const auto found = s.sequences.find(id);
  if (found == s.sequences.end()) return;
  Sequence& q = *found->second;
  s.finish(q, s.ending(q, reason, std::move(why)), now, s.pending);
}

void Scheduler::expire(Nanoseconds now) { state_->expire(now); }

// Slots keep their generations and tickets go on, so that nothing of the old device is mistaken for
// the new one's.
void Scheduler::lose_device(Nanoseconds now) {
  State& s = *state_;
  ++s.counters.devices_lost;
  s.lost = s.counters.steps;
  s.in_flight.clear();
  while (!s.running.empty()) {
    Sequence& q = *s.running.back();
    if (++q.losses == losses_max) {
      Error why{ErrorCode::internal,
                fmt::format("{} devices in a row were lost while they computed this request",
                            losses_max),
                0};
      s.finish(q, s.ending(q, FinishReason::error, std::move(why)), now, s.pending);
    } else {
      s.release(q);
      s.wait(q);
    }
  }
  s.closing.clear();
  s.free_all_slots();
  s.blocks = KvBlocks(s.config.blocks);
  s.cache = PrefixCache(s.config.blocks);
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
  if (result.ticket <= s.lost) return take_events();
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
  q.losses = 0;
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
  if (q.form) {
    q.form->push(token);
    if (q.form->complete()) return FinishReason::stop;
  }
  return q.known() >= q.end ? FinishReason::length : FinishReason::none;
}

// A sequence's last event, wherever it was: all it holds is free for the next plan.
void Scheduler::State::finish(Sequence& q, SequenceEvent event, Nanoseconds now, Applied& out) {
  const SequenceId id = q.request.id;
  if (waiting.contains(&q)) stop_waiting(q);
  else release(q);
  const bool never_ran = q.timing.started == 0;
  shares.settle(q.request.tenant, q.expected(), never_ran ? 0 : q.known());
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
