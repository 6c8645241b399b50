#include <algorithm>
#include <utility>

#include "engine/request_check.hpp"
#include "engine/scheduler_state.hpp"

namespace sluice::engine {

Result<void> Scheduler::submit(Request request, Nanoseconds now) {
  State& s = *state_;
  SLUICE_ASSERT(!s.sequences.contains(request.id), "a sequence id is never used twice");
  if (auto ok = check_request(request, s.tokenizer->size()); !ok) return ok;
  if (auto ok = s.check_length(request); !ok) return ok;
  if (auto ok = s.check_queue(request); !ok) return ok;
  std::shared_ptr<CompiledConstraint> constraint;
  if (request.constraint) {
    auto compiled = s.constraints.get(request.constraint);
    if (!compiled) return tl::unexpected(compiled.error());
    constraint = std::move(*compiled);
  }

  auto owned = std::make_unique<Sequence>();
  Sequence& q = *owned;
  q.arrival = s.arrivals++;
  q.prompt = static_cast<std::uint32_t>(request.prompt.size());
  q.end = request.max_tokens > 0 ? q.prompt + request.max_tokens : s.context_tokens;
  q.timing.submitted = now;
  if (!request.stops.empty()) q.text.emplace(s.tokenizer, request);
  if (constraint) {
    q.form.emplace(std::move(constraint), s.tokenizer,
                   s.tokenizer->drops_leading_space() && !request.continues_text);
  }
  q.request = std::move(request);
  q.tag = s.shares.next(q.request.tenant);
  if (auto ok = s.check_deadline(q, now); !ok) return ok;

  FinishReason reason = FinishReason::none;
  for (const Token token : q.request.resumed) {
    if (reason != FinishReason::none) {
      return fail(ErrorCode::bad_request, "the sequence ended with resumed token {} of {}",
                  q.output.size(), q.request.resumed.size());
    }
    reason = s.absorb(q, token);
    if (q.form && q.form->failed()) {
      return fail(ErrorCode::bad_request, "resumed token {} does not fit the constraint",
                  q.output.size() - 1);
    }
  }
  s.sequences.emplace(q.request.id, std::move(owned));
  if (q.request.deadline) s.deadlines.emplace(*q.request.deadline, q.request.id);
  s.shares.enter(q.request.tenant, q.expected());
  s.wait(q);
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

void Scheduler::State::wait(Sequence& q) {
  waiting.insert(&q);
  ++waiting_of[q.request.tenant];
}

void Scheduler::State::stop_waiting(Sequence& q) {
  waiting.erase(&q);
  const auto found = waiting_of.find(q.request.tenant);
  if (--found->second == 0) waiting_of.erase(found);
}

// Prompts are computed in order of precedence; what this one shares with the cache comes for free,
// which is left out of account: whoever sets a deadline may be refused a little too early.
Result<void> Scheduler::State::check_deadline(const Sequence& asked, Nanoseconds now) const {
  const Request& request = asked.request;
  if (!request.deadline || *request.deadline <= now) return {};  // `expire` ends what is past it
  std::uint64_t ahead = request.prompt.size() + request.resumed.size();
  std::uint32_t decoding = 0;
  for (const Sequence* q : running) {
    decoding += q->decodes() ? 1 : 0;
    ahead += q->known() - std::min(q->known(), q->planned);
  }
  for (const Sequence* q : waiting)
    if (Before{}(q, &asked)) ahead += q->known();
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
Result<void> Scheduler::State::check_queue(const Request& request) {
  constexpr std::uint64_t hint_ms_max = 60'000;
  const auto found = waiting_of.find(request.tenant);
  const std::uint32_t own = found == waiting_of.end() ? 0 : found->second;
  const bool all_full = waiting.size() >= std::size_t{queue_tenants} * config.queue_max;
  if (own < config.queue_max && !all_full) return {};
  const std::uint64_t hint_ms = ++refused * (end_gap / 1'000'000 + 1);
  auto refusal = fail(ErrorCode::overloaded, "{} sequences{} wait already",
                      all_full ? waiting.size() : own, all_full ? "" : " of the same tenant");
  refusal.value().retry_after_ms = static_cast<std::uint32_t>(std::min(hint_ms, hint_ms_max));
  return refusal;
}

}  // namespace sluice::engine
