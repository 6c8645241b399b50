#include "actors/streamer.hpp"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>
#include <variant>

#include "actors/clock.hpp"

namespace sluice::actors {
namespace {

using Self = StreamerActor::stateful_pointer<StreamerState>;

/// How often idle duties (repeated terminals, grace, retention) are looked at; each has its own
/// time limit far above this.
constexpr std::chrono::milliseconds tick_interval{100};

std::shared_ptr<const std::string> frame_of(const transport::Message& message) {
  return std::make_shared<const std::string>(transport::encode(message));
}

/// Puts what a stream has to say behind what else leaves with this message.
void deliver(Self self, const transport::StreamId& stream) {
  auto& state = self->state;
  for (auto& delivery : state.deliveries) {
    auto& leaving = state.leaving.emplace_back();
    leaving.frame = std::move(delivery.frame);
    if (delivery.peer)
      leaving.to = std::move(*delivery.peer);
    else
      leaving.to = stream;
    ++state.chunks;
  }
  state.deliveries.clear();
}

/// The last thing that a message does: the I/O thread, once awake, takes the core.
void flush(Self self) {
  auto& state = self->state;
  if (!state.leaving.empty()) state.outbox->post(std::move(state.leaving));
  state.leaving.clear();
}

void keep_ticking(Self self) {
  if (self->state.ticking || self->state.streams.empty()) return;
  self->state.ticking = true;
  self->delayed_send(self, tick_interval, tick_atom::value);
}

void open(Self self, StreamOpen& open) {
  auto& state = self->state;
  const auto id = open.accepted.stream;
  state.outbox->send(open.owner, frame_of(open.accepted));
  state.streams.erase(id);  // a higher epoch takes a lower one's place
  const std::vector<engine::ChainHash> starts(open.choices.size(), open.accepted.chain);
  auto& kept = state.streams
                   .emplace(id, StreamerState::Kept{transport::StreamState(id, open.accepted.epoch,
                                                                           open.owner, starts,
                                                                           state.config, now(self)),
                                                    {},
                                                    open.engine,
                                                    open.accepted.epoch})
                   .first->second;
  for (std::uint32_t i = 0; i < open.choices.size(); ++i) {
    const auto& [tokens, text_bytes] = open.choices[i];
    auto& choice = kept.choices.emplace_back(
        StreamerState::Choice{engine::TextStream(open.engine->tokenizer, open.request),
                              static_cast<std::uint32_t>(tokens.size()), open.received});
    for (const Token token : tokens) kept.stream.restore(i, token, choice.text.push(token));
    if (!tokens.empty()) kept.stream.owner_holds(i, text_bytes);
  }
  keep_ticking(self);
}

/// The stream's one terminal, and the session told. With no error all choices are finished; one
/// that was cancelled makes the stream's end a cancelled one.
void end(Self self, const transport::StreamId& id, StreamerState::Kept& kept,
         const std::optional<Error>& failed) {
  auto& state = self->state;
  kept.finished_ns = now(self);
  std::vector<engine::FinishReason> reasons;
  std::vector<transport::Receipt> receipts;
  for (const auto& choice : kept.choices) {
    reasons.push_back(choice.finish);
    receipts.push_back(choice.receipt);
  }
  const auto receipt = join_receipts(receipts);
  auto finish = reasons.front();
  if (std::ranges::count(reasons, engine::FinishReason::cancelled) > 0)
    finish = engine::FinishReason::cancelled;
  transport::Message terminal;
  if (failed) {
    finish = engine::FinishReason::error;
    terminal = transport::Failed{id, kept.epoch, *failed};
  } else {
    terminal = transport::Done{id, kept.epoch, std::move(reasons), {}, receipt, {}};
  }
  kept.stream.finish(std::move(terminal), now(self), state.deliveries);
  self->send(state.session, finished_atom::value,
             StreamEnd{id, kept.epoch, finish, receipt, failed.value_or(Error{})});
}

/// For stats: how long a choice's first token, or the next ones, took.
void count(StreamerState& state, StreamerState::Choice& choice, std::size_t tokens,
           std::uint64_t now_ns) {
  const std::uint64_t waited_ns = now_ns > choice.news_ns ? now_ns - choice.news_ns : 0;
  (choice.tokens == 0 ? state.ttft : state.itl).add(static_cast<double>(waited_ns) / 1e6);
  state.token_rate.add(now_ns, tokens);
  choice.news_ns = now_ns;
}

void take(Self self, StreamEvent& news) {
  auto& state = self->state;
  const auto found = state.streams.find(news.stream);
  if (found == state.streams.end() || found->second.epoch != news.epoch ||
      found->second.finished_ns)
    return;
  auto& kept = found->second;
  auto& choice = kept.choices.at(news.choice);
  auto& event = news.event;
  SLUICE_ASSERT(event.tokens.empty() || event.first_index == choice.tokens,
                "the scheduler's tokens are gapless");
  std::string text;
  for (const Token token : event.tokens) text += choice.text.push(token);
  // Cut short, it may go on elsewhere, where what is held back may turn out a stop.
  const bool complete =
      event.finish == engine::FinishReason::stop || event.finish == engine::FinishReason::length;
  if (complete) text += choice.text.finish();
  if (!event.tokens.empty()) count(state, choice, event.tokens.size(), now(self));
  choice.tokens += static_cast<std::uint32_t>(event.tokens.size());
  if (!event.tokens.empty() || !text.empty())
    kept.stream.append(news.choice, event.tokens, std::move(text), std::move(event.logprobs),
                       now(self), state.deliveries);
  if (event.finish != engine::FinishReason::none) {
    choice.finish = event.finish;
    choice.receipt = news.receipt;
    if (event.finish == engine::FinishReason::error)
      end(self, news.stream, kept, event.error);
    else if (std::ranges::none_of(kept.choices, [](const auto& one) {
               return one.finish == engine::FinishReason::none;
             }))
      end(self, news.stream, kept, std::nullopt);
  }
  deliver(self, news.stream);
}

/// Answers who waits for the end when no owner lacks anything.
void settle(StreamerState& state) {
  if (state.drains.empty()) return;
  for (const auto& [id, kept] : state.streams)
    if (kept.stream.owed()) return;
  for (auto& drain : std::exchange(state.drains, {})) drain.deliver(true);
}

void follow(Self self, const transport::Follow& follow) {
  auto& state = self->state;
  const auto id = std::visit([](const auto& message) { return message.stream; }, follow.message);
  const auto found = state.streams.find(id);
  if (const auto* attach = std::get_if<transport::Attach>(&follow.message)) {
    if (found == state.streams.end()) {
      state.outbox->send(follow.peer,
                         frame_of(transport::Failed{
                             id, 0, {ErrorCode::gone, "the stream's log is no longer held"}}));
      return;
    }
    found->second.stream.on_attach(follow.peer, *attach, follow.owner, now(self), state.deliveries);
  } else if (found != state.streams.end()) {
    found->second.stream.on_ack(follow.peer, std::get<transport::Ack>(follow.message), follow.owner,
                                now(self), state.deliveries);
  }
  deliver(self, id);
  flush(self);
  settle(state);
}

/// Frees ended streams until what all of them hold is within bounds: those nobody waits for
/// first, of these the oldest.
void bound_retention(StreamerState& state) {
  struct Ended {
    bool awaited;
    std::uint64_t finished_ns;
    transport::StreamId id;
    std::size_t bytes;
  };
  std::vector<Ended> ended;
  std::size_t bytes = 0;
  for (const auto& [id, kept] : state.streams) {
    if (!kept.finished_ns) continue;
    ended.push_back({!kept.stream.settled(), *kept.finished_ns, id, kept.stream.memory_bytes()});
    bytes += ended.back().bytes;
  }
  if (bytes <= state.config.retention_bytes) return;
  std::ranges::sort(ended, [](const Ended& a, const Ended& b) {
    return std::tie(a.awaited, a.finished_ns) < std::tie(b.awaited, b.finished_ns);
  });
  for (const auto& [awaited, finished_ns, id, size] : ended) {
    state.streams.erase(id);
    bytes -= size;
    if (bytes <= state.config.retention_bytes) return;
  }
}

void tick(Self self) {
  auto& state = self->state;
  for (auto at = state.streams.begin(); at != state.streams.end();) {
    auto& [id, kept] = *at;
    const auto verdict = kept.stream.tick(now(self), state.deliveries);
    deliver(self, id);
    if (verdict.abandoned && !kept.abandoned && !kept.finished_ns) {
      kept.abandoned = true;
      self->send(state.session, cancel_atom::value, id, kept.epoch);
    }
    at = verdict.expired ? state.streams.erase(at) : std::next(at);
  }
  flush(self);
  bound_retention(state);
  settle(state);
  state.ticking = false;
  keep_ticking(self);
}

}  // namespace

StreamerActor::behavior_type streamer(Self self, OutboxPtr outbox, transport::StreamConfig config,
                                      SessionActor session) {
  self->state.outbox = std::move(outbox);
  self->state.config = config;
  self->state.session = std::move(session);
  return {
      [self](open_atom, StreamOpen& opened) { open(self, opened); },
      [self](events_atom, StepEvents& step) {
        for (auto& news : step.events) take(self, news);
        flush(self);
      },
      [self](follow_atom, const transport::Follow& asked) { follow(self, asked); },
      [self](lost_atom, const transport::Peer& peer) {
        for (auto& [id, kept] : self->state.streams) kept.stream.on_lost(peer, now(self));
        settle(self->state);
      },
      [self](engine_atom, const EngineFactsPtr& engine, const Error& why) {
        for (auto& [id, kept] : self->state.streams) {
          if (kept.engine != engine || kept.finished_ns) continue;
          end(self, id, kept, why);
          deliver(self, id);
        }
        flush(self);
      },
      [self](stats_atom) {
        std::size_t bytes = 0;
        for (const auto& [id, kept] : self->state.streams) bytes += kept.stream.memory_bytes();
        const auto& state = self->state;
        NamedValues values{{"streams.frames", static_cast<double>(state.chunks)},
                           {"streams.kept", static_cast<double>(state.streams.size())},
                           {"streams.log_bytes", static_cast<double>(bytes)},
                           {"streams.tokens_per_s", state.token_rate.per_second(now(self))}};
        state.ttft.put("streams.ttft_ms", values);
        state.itl.put("streams.itl_ms", values);
        return values;
      },
      [self](drain_atom) -> caf::result<bool> {
        auto promise = self->make_response_promise<bool>();
        self->state.drains.push_back(promise);
        settle(self->state);
        return promise;
      },
      [self](tick_atom) { tick(self); },
  };
}

}  // namespace sluice::actors
