#include "actors/batcher.hpp"

#include <chrono>
#include <cstring>
#include <utility>

#include "actors/clock.hpp"

namespace sluice::actors {
namespace {

using Self = BatcherActor::stateful_pointer<BatcherState>;

/// A choice ended. With the last one the stream is over; one that failed fails all.
void retire(Self self, const BatcherState::Sequence& sequence, bool failed) {
  auto& state = self->state;
  const auto found = state.by_stream.find(sequence.stream);
  // A higher epoch may have taken the stream's place meanwhile.
  if (found == state.by_stream.end() || found->second.epoch != sequence.epoch) return;
  auto& running = found->second;
  if (--running.unfinished == 0) {
    state.by_stream.erase(found);
  } else if (failed) {
    for (std::uint32_t i = 0; i < running.choices; ++i)
      state.scheduler->cancel(running.first + i, engine::FinishReason::cancelled, {}, now(self));
  }
}

void forward(Self self, engine::Applied applied) {
  auto& state = self->state;
  std::unordered_map<engine::SequenceId, engine::SequenceTiming> timings;
  for (const auto& finished : applied.finished) timings.emplace(finished.id, finished.timing);
  std::map<FrontPtr, std::vector<StepEvents>> fronts;
  for (auto& event : applied.events) {
    const auto found = state.sequences.find(event.id);
    SLUICE_ASSERT(found != state.sequences.end(), "the scheduler reports only what was admitted");
    const BatcherState::Sequence sequence = found->second;
    StreamEvent news{sequence.stream, sequence.choice, sequence.epoch, std::move(event), {}};
    if (news.event.finish != engine::FinishReason::none) {
      const auto timing = timings.find(news.event.id);
      SLUICE_ASSERT(timing != timings.end(), "a finish comes with its timing");
      news.receipt = make_receipt(*state.engine, timing->second);
      state.sequences.erase(found);
      retire(self, sequence, news.event.finish == engine::FinishReason::error);
    }
    auto& shards = fronts[sequence.front];
    shards.resize(sequence.front->streamers.size());
    shards[shard_of(sequence.stream, shards.size())].events.push_back(std::move(news));
  }
  for (auto& [front, shards] : fronts)
    for (std::size_t i = 0; i < shards.size(); ++i)
      if (!shards[i].events.empty())
        self->send(front->streamers[i], events_atom::value, std::move(shards[i]));
}

/// Plans as far ahead as may be, then tells the news: first what a step brought, then what ended
/// meanwhile (a deadline, a cancel). The device does not wait for the telling.
void advance(Self self, engine::Applied applied) {
  auto& scheduler = *self->state.scheduler;
  if (!self->state.executor) scheduler.expire(now(self));
  while (self->state.executor) {
    if (auto masks = scheduler.take_masks())
      self->send(self->state.executor, sample_atom::value, std::move(*masks));
    auto next = scheduler.plan(now(self));
    if (!next) break;
    self->send(self->state.executor, run_atom::value, std::move(*next));
  }
  forward(self, std::move(applied));
  // One choice's failure ends the others: until nothing is new.
  for (auto more = scheduler.take_events(); !more.events.empty(); more = scheduler.take_events())
    forward(self, std::move(more));
}

/// All choices, or none with the error.
Result<void> submit(Self self, const Admission& admission, engine::SequenceId first) {
  auto& scheduler = *self->state.scheduler;
  for (std::uint32_t i = 0; i < admission.choices.size(); ++i) {
    auto request = choice_request(admission.request, admission.choices, i);
    request.id = first + i;
    auto taken = scheduler.submit(std::move(request), now(self));
    if (taken) continue;
    for (std::uint32_t j = 0; j < i; ++j)
      scheduler.cancel(first + j, engine::FinishReason::cancelled, {}, now(self));
    scheduler.take_events();  // of these alone: nobody has heard of them
    return taken;
  }
  return {};
}

void admit(Self self, const FrontPtr& front, Admission& admission) {
  auto& state = self->state;
  const auto stream = admission.stream;
  const auto epoch = admission.accepted.epoch;
  const auto count = static_cast<std::uint32_t>(admission.choices.size());
  const auto first = state.next_id;
  state.next_id += count;
  if (auto taken = submit(self, admission, first); !taken) {
    self->send(front->session, refused_atom::value, Refusal{stream, epoch, taken.error()});
    return;
  }
  for (std::uint32_t i = 0; i < count; ++i)
    state.sequences.emplace(first + i, BatcherState::Sequence{stream, epoch, i, front});
  state.by_stream.insert_or_assign(stream,
                                   BatcherState::Running{first, count, count, epoch, front});
  StreamOpen open{admission.owner,
                  state.engine,
                  admission.accepted,
                  std::move(admission.request),
                  std::move(admission.choices),
                  admission.received};
  open.request.prompt.clear();
  // The streamer hears of the stream before any of its tokens: both messages come from here.
  self->send(front->streamers[shard_of(stream, front->streamers.size())], open_atom::value,
             std::move(open));
  self->send(front->session, accepted_atom::value, admission.accepted);
  advance(self, {});
}

void cancel(Self self, const BatcherState::Running& running) {
  auto& scheduler = *self->state.scheduler;
  for (std::uint32_t i = 0; i < running.choices; ++i)
    scheduler.cancel(running.first + i, engine::FinishReason::cancelled, {}, now(self));
}

/// Deadlines hold while there is no executor, to within this.
constexpr std::chrono::milliseconds expire_period{100};

void lose_executor(Self self) {
  auto& state = self->state;
  if (!state.executor) return;
  state.executor = nullptr;
  state.scheduler->lose_device(now(self));
  advance(self, {});
  self->delayed_send(self, expire_period, tick_atom::value);
}

}  // namespace

std::size_t shard_of(const transport::StreamId& stream, std::size_t count) {
  std::uint64_t word = 0;
  std::memcpy(&word, stream.data(), sizeof word);
  return word % count;
}

BatcherActor::behavior_type batcher(Self self, EngineFactsPtr engine, ExecutorActor executor) {
  self->state.scheduler = std::make_unique<engine::Scheduler>(engine->scheduler, engine->tokenizer);
  self->state.engine = std::move(engine);
  self->state.executor = std::move(executor);
  return {
      [self](admit_atom, const FrontPtr& front, Admission& admission) {
        admit(self, front, admission);
      },
      [self](cancel_atom, const transport::StreamId& stream, std::uint64_t epoch) {
        auto& state = self->state;
        const auto found = state.by_stream.find(stream);
        if (found == state.by_stream.end() || found->second.epoch != epoch) return;
        cancel(self, found->second);
        advance(self, {});
      },
      [self](lost_atom, const FrontPtr& front) {
        for (const auto& [stream, running] : self->state.by_stream)
          if (running.front == front) cancel(self, running);
        advance(self, {});
      },
      [self](lost_atom) { lose_executor(self); },
      [self](engine_atom, ExecutorActor& next) {
        lose_executor(self);
        self->state.executor = std::move(next);
        advance(self, {});
      },
      [self](tick_atom) {
        if (self->state.executor) return;
        advance(self, {});
        self->delayed_send(self, expire_period, tick_atom::value);
      },
      [self](const engine::StepResult& result) {
        advance(self, self->state.scheduler->apply(result, now(self)));
      },
      [self](stats_atom) {
        const auto stats = self->state.scheduler->stats();
        NamedValues values;
        // Under the engine's own name, and under "engine", where those of all engines add up.
        for (const auto& prefix : {"engine." + self->state.engine->name, std::string("engine")}) {
          values.emplace_back(prefix + ".blocks_free", stats.blocks_free);
          values.emplace_back(prefix + ".blocks_total", stats.blocks_total);
          values.emplace_back(prefix + ".preemptions", stats.preemptions);
          values.emplace_back(prefix + ".devices_lost", static_cast<double>(stats.devices_lost));
          values.emplace_back(prefix + ".blocks_cached", stats.blocks_cached);
          values.emplace_back(prefix + ".prompt_tokens", stats.prompt_tokens);
          values.emplace_back(prefix + ".cached_tokens", stats.cached_tokens);
          values.emplace_back(prefix + ".running", stats.running);
          values.emplace_back(prefix + ".steps", stats.steps);
          values.emplace_back(prefix + ".tokens", stats.tokens);
          values.emplace_back(prefix + ".waiting", stats.waiting);
        }
        return values;
      },
  };
}

}  // namespace sluice::actors
