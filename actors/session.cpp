#include "actors/session.hpp"

#include <algorithm>
#include <functional>
#include <utility>
#include <variant>

#include "actors/batcher.hpp"
#include "actors/clock.hpp"
#include "actors/gather.hpp"

namespace sluice::actors {
namespace {

using Self = SessionActor::stateful_pointer<SessionState>;

/// How long a client is asked to wait while an engine loads or restarts.
constexpr std::uint32_t retry_after_load_ms = 500;

/// A node told to stop waits at most this long for clients to say that they have everything.
constexpr std::chrono::seconds acknowledge_timeout{5};

void say(Self self, const transport::Peer& peer, const transport::Message& message) {
  if (const auto* failed = std::get_if<transport::Failed>(&message))
    ++self->state.refused[std::string(to_string(failed->error.code))];
  self->state.setup.outbox->send(peer,
                                 std::make_shared<const std::string>(transport::encode(message)));
}

void act(Self self, std::vector<transport::SessionAction> actions);

void refuse(Self self, const transport::StreamId& stream, std::uint64_t epoch, Error why) {
  self->state.setup.log->refused({stream, epoch, why});
  act(self, self->state.session->on_refused(stream, epoch, std::move(why), now(self)));
}

/// Once no stream is open: waits until the streamers have seen every end acknowledged, or its owner
/// gone, then answers who asked for the drain.
void finish_drain(Self self) {
  auto& state = self->state;
  if (state.drains.empty() || !state.open.empty()) return;
  auto drains = std::make_shared<std::vector<caf::typed_response_promise<bool>>>(
      std::exchange(state.drains, {}));
  auto missing = std::make_shared<std::size_t>(state.streamers.size() + 1);
  const auto arrived = [drains, missing] {
    if (--*missing != 0) return;
    for (auto& drain : *drains) drain.deliver(true);
  };
  for (const auto& streamer : state.streamers)
    self->request(streamer, acknowledge_timeout, drain_atom::value)
        .then([arrived](bool) { arrived(); }, [arrived](const caf::error&) { arrived(); });
  arrived();
}

void close(Self self, const transport::StreamId& stream, std::uint64_t epoch) {
  auto& state = self->state;
  const auto found = state.open.find(stream);
  if (found != state.open.end() && found->second.epoch == epoch) state.open.erase(found);
  finish_drain(self);
}

const SessionState::Engine* find_engine(const SessionState& state, const EngineFactsPtr& facts) {
  const auto found = std::find_if(state.engines.begin(), state.engines.end(),
                                  [&](const auto& engine) { return engine.facts == facts; });
  return found == state.engines.end() ? nullptr : &*found;
}

std::set<std::string> engine_names(const SessionState& state) {
  std::set<std::string> names;
  for (const auto& engine : state.engines) names.insert(engine.facts->name);
  return names;
}

/// Of replicas the one with the fewest of this front's streams, and an executor if any has one.
EngineFactsPtr least_loaded(const SessionState& state, const std::string& name) {
  std::map<EngineFactsPtr, std::size_t> streams;
  for (const auto& [stream, open] : state.open) ++streams[open.engine];
  const SessionState::Engine* best = nullptr;
  const auto load = [&](const auto& engine) {
    return std::pair(engine.away, streams[engine.facts]);
  };
  for (const auto& engine : state.engines)
    if (engine.facts->name == name && (best == nullptr || load(engine) < load(*best)))
      best = &engine;
  return best == nullptr ? nullptr : best->facts;
}

Result<EngineFactsPtr> pick_engine(const SessionState& state, const std::string& model) {
  const auto names = engine_names(state);
  if (model.empty() && names.size() == 1) return least_loaded(state, *names.begin());
  if (names.contains(model)) return least_loaded(state, model);
  const std::string known = fmt::format("{}", fmt::join(names, ", "));
  if (state.engines.empty())
    return tl::unexpected(Error{ErrorCode::unavailable,
                                "the engine was lost and is being restarted", retry_after_load_ms});
  if (model.empty())
    return fail(ErrorCode::bad_request, "the request names no model: choose one of {}", known);
  return fail(ErrorCode::not_found, "model '{}' is not served here; served are: {}", model, known);
}

void start(Self self, transport::Start start) {
  auto& state = self->state;
  const auto stream = start.submit.stream;
  const auto epoch = start.submit.epoch;
  auto engine = pick_engine(state, start.submit.model);
  if (!engine) return refuse(self, stream, epoch, engine.error());
  state.setup.log->prompt(start.submit);
  state.open.insert_or_assign(stream, SessionState::Open{*engine, epoch});
  auto& tokenizer = state.tokenizers[state.next_tokenizer++ % state.tokenizers.size()];
  self->send(tokenizer, tokenize_atom::value, std::move(*engine), std::move(start.peer),
             std::move(start.submit));
}

void stop(Self self, const transport::StreamId& stream, std::uint64_t epoch) {
  auto& state = self->state;
  const auto found = state.open.find(stream);
  if (found == state.open.end() || found->second.epoch != epoch) return;
  if (!found->second.admitted) {
    found->second.cancelled = true;  // the tokenizer's answer will find it so
    return;
  }
  if (const auto* engine = find_engine(state, found->second.engine))
    self->send(engine->batcher, cancel_atom::value, stream, epoch);
}

void admit(Self self, Admission& admission) {
  auto& state = self->state;
  const auto stream = admission.stream;
  const auto epoch = admission.accepted.epoch;
  const auto found = state.open.find(stream);
  if (found == state.open.end() || found->second.epoch != epoch)
    return;  // a higher epoch took over
  const auto* engine = find_engine(state, admission.engine);
  Error why;
  if (found->second.cancelled)
    why = {ErrorCode::cancelled, "cancelled by its owner before it started"};
  else if (engine == nullptr)
    why = {ErrorCode::unavailable, "the engine was lost and is being restarted",
           retry_after_load_ms};
  else {
    found->second.admitted = true;
    self->send(engine->batcher, admit_atom::value, state.front, std::move(admission));
    return;
  }
  close(self, stream, epoch);
  refuse(self, stream, epoch, std::move(why));
}

transport::Health health_of(const SessionState& state) {
  std::set<std::string> there;
  for (const auto& engine : state.engines)
    if (!engine.away) there.insert(engine.facts->name);
  const auto serving = there.size();
  if (state.session == nullptr)
    return {false, fmt::format("loading: {} of {} engines ready", serving, state.setup.engines)};
  if (state.draining) return {false, "draining: no new streams are taken"};
  if (serving < state.setup.engines)
    return {false, fmt::format("{} of {} engines lost, restarting", state.setup.engines - serving,
                               state.setup.engines)};
  return {true, ""};
}

/// Asks every part.
void gather_stats(Self self, std::function<void(const transport::Values&)> answer) {
  auto& state = self->state;
  auto own = state.setup.outbox->stats();
  if (state.setup.more_stats) {
    const auto more = state.setup.more_stats();
    own.insert(own.end(), more.begin(), more.end());
  }
  own.emplace_back("session.open", static_cast<double>(state.open.size()));
  for (const auto& [code, count] : state.refused)
    own.emplace_back("refused." + code, static_cast<double>(count));
  for (const auto& [finish, count] : state.finished)
    own.emplace_back("finished." + finish, static_cast<double>(count));
  const auto gathering = std::make_shared<Gathering>(std::move(own), std::move(answer));
  for (const auto& engine : state.engines) gathering->ask(self, engine.batcher);
  for (const auto& streamer : state.streamers) gathering->ask(self, streamer);
  gathering->asked_all();
}

void act(Self self, std::vector<transport::SessionAction> actions) {
  auto& state = self->state;
  for (auto& action : actions) {
    if (auto* reply = std::get_if<transport::Reply>(&action)) {
      say(self, reply->peer, reply->message);
    } else if (auto* started = std::get_if<transport::Start>(&action)) {
      start(self, std::move(*started));
    } else if (const auto* stopped = std::get_if<transport::Stop>(&action)) {
      stop(self, stopped->stream, stopped->epoch);
    } else if (auto* follow = std::get_if<transport::Follow>(&action)) {
      const auto stream = std::visit([](const auto& m) { return m.stream; }, follow->message);
      self->send(state.streamers[shard_of(stream, state.streamers.size())], follow_atom::value,
                 std::move(*follow));
    } else if (const auto* stats = std::get_if<transport::AskStats>(&action)) {
      gather_stats(self, [self, peer = stats->peer](const transport::Values& sums) {
        say(self, peer, transport::Stats{{sums.begin(), sums.end()}});
      });
    } else if (const auto* health = std::get_if<transport::AskHealth>(&action)) {
      say(self, health->peer, health_of(state));
    }
  }
}

void receive(Self self, Inbound& inbound) {
  auto& state = self->state;
  if (state.session != nullptr)
    return act(self, state.session->on_message(inbound.peer, std::move(inbound.message), now(self),
                                               inbound.client));
  if (std::holds_alternative<transport::HealthRequest>(inbound.message))
    return say(self, inbound.peer, health_of(state));
  say(self, inbound.peer,
      transport::Failed{
          std::nullopt, 0, {ErrorCode::unavailable, health_of(state).why, retry_after_load_ms}});
}

/// Greets clients once everything is there; `welcome` lists the models.
void begin(Self self) {
  auto& state = self->state;
  if (state.session != nullptr || engine_names(state).size() < state.setup.engines ||
      state.streamers.empty())
    return;
  auto config = state.setup.config;
  config.welcome.models.clear();
  for (const auto& engine : state.engines) config.welcome.models.push_back(describe(*engine.facts));
  std::sort(config.welcome.models.begin(), config.welcome.models.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  state.session = std::make_unique<transport::Session>(std::move(config));
  state.setup.status->set_ready();
}

void lose_engine(Self self, const EngineFactsPtr& facts, const Error& why) {
  auto& state = self->state;
  std::erase_if(state.engines, [&](const auto& engine) { return engine.facts == facts; });
  for (const auto& streamer : state.streamers) self->send(streamer, engine_atom::value, facts, why);
  // What the batcher never answered has no keeper: its client hears it from here.
  std::vector<std::pair<transport::StreamId, std::uint64_t>> unanswered;
  for (const auto& [stream, open] : state.open)
    if (open.engine == facts && open.admitted && !open.accepted)
      unanswered.emplace_back(stream, open.epoch);
  for (const auto& [stream, epoch] : unanswered) {
    close(self, stream, epoch);
    refuse(self, stream, epoch, why);
  }
}

}  // namespace

SessionActor::behavior_type session(Self self, SessionSetup setup) {
  self->state.setup = std::move(setup);
  return {
      [self](ready_atom, FrontParts& parts) {
        self->state.tokenizers = std::move(parts.tokenizers);
        self->state.streamers = std::move(parts.streamers);
        auto front = std::make_shared<Front>();
        front->session = FrontNews(SessionActor(self));
        front->streamers.assign(self->state.streamers.begin(), self->state.streamers.end());
        self->state.front = std::move(front);
        self->state.setup.config.welcome.publish = std::move(parts.publish);
        begin(self);
      },
      [self](inbound_atom, Inbound& inbound) { receive(self, inbound); },
      [self](lost_atom, const transport::Peer& peer) {
        for (const auto& streamer : self->state.streamers)
          self->send(streamer, lost_atom::value, peer);
      },
      [self](tokenize_atom, Admission& admission) { admit(self, admission); },
      [self](accepted_atom, const transport::Accepted& accepted) {
        const auto found = self->state.open.find(accepted.stream);
        if (found != self->state.open.end() && found->second.epoch == accepted.epoch)
          found->second.accepted = true;
        act(self, self->state.session->on_accepted(accepted, now(self)));
      },
      [self](refused_atom, const Refusal& refusal) {
        close(self, refusal.stream, refusal.epoch);
        refuse(self, refusal.stream, refusal.epoch, refusal.error);
      },
      [self](finished_atom, const StreamEnd& end) {
        self->state.setup.log->request(end);
        ++self->state.finished[std::string(transport::to_string(end.finish))];
        self->state.session->on_finished(end.stream, end.epoch, now(self));
        close(self, end.stream, end.epoch);
      },
      [self](cancel_atom, const transport::StreamId& stream, std::uint64_t epoch) {
        stop(self, stream, epoch);
      },
      [self](engine_atom, const EngineFactsPtr& facts, const EngineActor& batcher) {
        self->state.engines.push_back({facts, batcher, false});
        begin(self);
      },
      [self](engine_atom, const EngineFactsPtr& facts, const Error& why) {
        lose_engine(self, facts, why);
      },
      [self](engine_atom, const EngineFactsPtr& facts, bool there) {
        for (auto& engine : self->state.engines)
          if (engine.facts == facts) engine.away = !there;
      },
      [self](clients_atom, transport::ClientGrants& clients) {
        auto& state = self->state;
        if (state.session == nullptr)
          state.setup.config.clients = std::move(clients);  // it begins with them
        else
          act(self, state.session->set_clients(std::move(clients)));
      },
      [self](stats_atom) -> caf::result<NamedValues> {
        auto promise = self->make_response_promise<NamedValues>();
        gather_stats(self, [promise](const transport::Values& sums) mutable {
          promise.deliver(NamedValues(sums.begin(), sums.end()));
        });
        return promise;
      },
      [self](drain_atom) -> caf::result<bool> {
        auto& state = self->state;
        state.draining = true;
        if (state.session != nullptr) state.session->drain();
        auto promise = self->make_response_promise<bool>();
        state.drains.push_back(promise);
        finish_drain(self);
        return promise;
      },
  };
}

}  // namespace sluice::actors
