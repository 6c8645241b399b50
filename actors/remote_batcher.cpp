#include "actors/remote_batcher.hpp"

#include <utility>
#include <variant>

#include "actors/batcher.hpp"
#include "actors/clock.hpp"

namespace sluice::actors {
namespace {

using Proxy = BatcherProxyActor::stateful_pointer<BatcherProxyState>;
using Stub = BatcherStubActor::stateful_pointer<BatcherStubState>;

engine::Nanoseconds age(engine::Nanoseconds then, engine::Nanoseconds now) {
  return now > then ? now - then : 0;
}

/// As a batcher here does: the streamer hears of the stream first.
void open_stream(Proxy self, const transport::OpenStream& said) {
  auto open = self->state.streams.open(said.stream, said.epoch);
  if (!open) return;
  const auto& front = *self->state.front;
  auto accepted = open->accepted;
  self->send(front.streamers[shard_of(said.stream, front.streamers.size())], open_atom::value,
             std::move(*open));
  self->send(front.session, accepted_atom::value, std::move(accepted));
}

Result<void> hand_on(Proxy self, transport::StepEvents& events) {
  const auto& front = *self->state.front;
  std::vector<StepEvents> shards(front.streamers.size());
  for (auto& event : events.events) {
    const auto known = self->state.streams.take(event);
    if (!known) return tl::unexpected(known.error());
    if (*known) shards[shard_of(event.stream, shards.size())].events.push_back(std::move(event));
  }
  for (std::size_t i = 0; i < shards.size(); ++i)
    if (!shards[i].events.empty())
      self->send(front.streamers[i], events_atom::value, std::move(shards[i]));
  return {};
}

/// News of a stream comes only after this side admitted it, so the front is known. What nobody
/// asked for is dropped; an error when the engine says what cannot be.
Result<void> receive(Proxy self, transport::NodeMessage& message) {
  auto& state = self->state;
  if (auto* answer = std::get_if<transport::StatsAnswer>(&message)) {
    auto question = state.questions.extract(answer->number);
    if (question) question.mapped().deliver(std::move(answer->values));
  } else if (state.front == nullptr) {
    return {};
  } else if (auto* events = std::get_if<transport::Events>(&message)) {
    return hand_on(self, *events);
  } else if (const auto* open = std::get_if<transport::OpenStream>(&message)) {
    open_stream(self, *open);
  } else if (auto* refused = std::get_if<transport::RefusedNews>(&message)) {
    if (state.streams.refused(refused->stream, refused->epoch))
      self->send(state.front->session, refused_atom::value, std::move(*refused));
  }
  return {};
}

/// What the batcher would not survive, or never end.
Result<void> check(const transport::Admit& admit) {
  if (admit.choices.empty() || admit.accepted.stream != admit.stream)
    return fail(ErrorCode::bad_request,
                "the admission has {} choices, and is {} the stream that it names",
                admit.choices.size(), admit.accepted.stream == admit.stream ? "of" : "not of");
  return {};
}

}  // namespace

transport::Admit to_wire(Admission&& admission, engine::Nanoseconds now) {
  transport::Admit admit;
  admit.age = age(admission.received, now);
  if (admission.request.deadline) admit.remaining = age(now, *admission.request.deadline);
  admission.request.deadline.reset();
  admit.owner = std::move(admission.owner);
  admit.stream = admission.stream;
  admit.request = std::move(admission.request);
  admit.choices = std::move(admission.choices);
  admit.accepted = std::move(admission.accepted);
  return admit;
}

Admission from_wire(transport::Admit&& admit, EngineFactsPtr engine, engine::Nanoseconds now) {
  Admission admission;
  admission.owner = std::move(admit.owner);
  admission.engine = std::move(engine);
  admission.stream = admit.stream;
  admission.request = std::move(admit.request);
  if (admit.remaining) admission.request.deadline = now + *admit.remaining;
  admission.choices = std::move(admit.choices);
  admission.accepted = std::move(admit.accepted);
  admission.received = age(admit.age, now);
  return admission;
}

BatcherProxyActor::behavior_type batcher_proxy(Proxy self, std::size_t engine,
                                               transport::LinkId link, transport::OpenChannel what,
                                               FactsLoader load, PeerBoxPtr peers, LoadNews news) {
  self->state.peers = std::move(peers);
  self->state.channel = self->state.peers->open(link, std::move(what), ChannelEnd(self));
  self->attach_functor(
      [peers = self->state.peers, channel = self->state.channel] { peers->close(channel); });
  const auto give_up = [self, engine, news](const Error& why) {
    self->send(news, ready_atom::value, EngineFailed{engine, why});
    self->quit(caf::sec::remote_linking_failed);
  };
  return {
      [self](admit_atom, const FrontPtr& front, Admission& admission) {
        self->state.front = front;
        self->state.streams.admit(admission);
        self->state.peers->send(self->state.channel, to_wire(std::move(admission), now(self)));
      },
      [self](cancel_atom, const transport::StreamId& stream, std::uint64_t epoch) {
        self->state.peers->send(self->state.channel, transport::CancelStream{stream, epoch});
      },
      [self](lost_atom, const FrontPtr&) { self->quit(); },
      [self](stats_atom) -> caf::result<NamedValues> {
        const auto number = ++self->state.last_question;
        auto promise = self->make_response_promise<NamedValues>();
        self->state.questions.emplace(number, promise);
        self->state.peers->send(self->state.channel, transport::StatsAsk{number});
        return promise;
      },
      [self, engine, news, load, give_up](channel_atom, const ChannelRef&,
                                          transport::NodeMessage& message) {
        if (const auto* opened = std::get_if<transport::ChannelOpened>(&message)) {
          auto facts = load();
          auto all = facts ? complete(std::move(*facts), *opened)
                           : Result<EngineFactsPtr>(tl::unexpected(facts.error()));
          if (!all) return give_up(all.error());
          if (!self->state.engine) self->state.streams = StreamLedger(vocabulary_of(**all));
          self->state.engine = *all;
          self->send(news, ready_atom::value, EngineReady{engine, std::move(*all), {}});
        } else if (const auto* failed = std::get_if<transport::ChannelFailed>(&message)) {
          give_up(failed->error);
        } else if (auto good = receive(self, message); !good) {
          give_up(good.error());
        }
      },
      [self](lost_atom, const ChannelRef&, const Error&) {
        self->quit(caf::exit_reason::remote_link_unreachable);
      },
  };
}

BatcherStubActor::behavior_type batcher_stub(Stub self, ChannelRef channel, EngineFactsPtr engine,
                                             EngineActor batcher, PeerBoxPtr peers) {
  self->state.peers = std::move(peers);
  self->state.channel = channel;
  self->state.engine = std::move(engine);
  self->state.batcher = std::move(batcher);
  self->state.front = std::make_shared<const Front>(Front{FrontNews(self), {StreamSink(self)}});
  self->monitor(self->state.batcher);
  self->state.peers->join(channel, ChannelEnd(self));
  self->state.peers->send(channel, describe_channel(*self->state.engine));
  const auto end = [self] {
    self->state.peers->close(self->state.channel);
    self->send(self->state.batcher, lost_atom::value, self->state.front);
    self->state.front = nullptr;  // it holds this actor
    self->quit();
  };
  self->set_down_handler([end](const caf::down_msg&) { end(); });
  self->set_exit_handler([end](const caf::exit_msg&) { end(); });
  return {
      [self](channel_atom, const ChannelRef&, transport::NodeMessage& message) {
        auto& state = self->state;
        if (auto* admit = std::get_if<transport::Admit>(&message)) {
          if (auto good = check(*admit); !good)
            return state.peers->send(state.channel,
                                     Refusal{admit->stream, admit->accepted.epoch, good.error()});
          self->send(state.batcher, admit_atom::value, state.front,
                     from_wire(std::move(*admit), state.engine, now(self)));
        } else if (const auto* cancel = std::get_if<transport::CancelStream>(&message)) {
          self->send(state.batcher, cancel_atom::value, cancel->stream, cancel->epoch);
        } else if (const auto* ask = std::get_if<transport::StatsAsk>(&message)) {
          self->request(state.batcher, caf::infinite, stats_atom::value)
              .then([self, number = ask->number](const NamedValues& values) {
                self->state.peers->send(self->state.channel,
                                        transport::StatsAnswer{number, values});
              });
        }
      },
      [end](lost_atom, const ChannelRef&, const Error&) { end(); },
      [](accepted_atom, const transport::Accepted&) {},  // `open` comes with it
      [self](refused_atom, const Refusal& refusal) {
        self->state.peers->send(self->state.channel, refusal);
      },
      [self](open_atom, const StreamOpen& open) {
        self->state.peers->send(self->state.channel,
                                transport::OpenStream{open.accepted.stream, open.accepted.epoch});
      },
      [self](events_atom, StepEvents& events) {
        self->state.peers->send(self->state.channel, std::move(events));
      },
  };
}

}  // namespace sluice::actors
