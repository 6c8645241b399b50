#include "actors/remote_tokenizer.hpp"

#include <algorithm>
#include <chrono>
#include <utility>
#include <variant>

#include "actors/clock.hpp"
#include "actors/remote_batcher.hpp"
#include "actors/tokenizer.hpp"

namespace sluice::actors {
namespace {

using Proxy = TokenizerProxyActor::stateful_pointer<TokenizerProxyState>;
using Stub = TokenizerStubActor::stateful_pointer<TokenizerStubState>;
using Far = TokenizerProxyState::Far;

/// How long a request waits for a node that offers.
constexpr std::chrono::nanoseconds offer_wait = std::chrono::seconds(2);

/// How long a client is asked to wait while no node offers a tokenizer.
constexpr std::uint32_t retry_ms = 500;

void refuse(Proxy self, const TokenizerProxyState::Waiting& waiting, Error why) {
  self->send(self->state.session, refused_atom::value,
             Refusal{waiting.submit.stream, waiting.submit.epoch, std::move(why)});
}

void ask(Proxy self, const Far& far, const TokenizerProxyState::Waiting& waiting) {
  self->state.peers->send(far.channel, transport::Tokenize{waiting.owner, waiting.submit});
}

/// Of an answer the ids of the prompt are the tokenizer's to say; the rest is as it was asked.
Result<void> answers(const TokenizerProxyState::Waiting& asked, const transport::Admit& answer) {
  const auto& submit = asked.submit;
  bool same = answer.owner == asked.owner && answer.accepted.stream == submit.stream &&
              answer.accepted.epoch == submit.epoch && answer.choices.size() == submit.n &&
              answer.request.stops == submit.stops &&
              answer.request.constraint == submit.constraint;
  for (std::size_t i = 0; same && i < submit.resume_tokens.size(); ++i)
    same = answer.choices[i].tokens == submit.resume_tokens[i] &&
           answer.choices[i].text_bytes == submit.resume_text_bytes[i];
  if (same) return {};
  return fail(ErrorCode::internal, "the node that reads prompts answered what was not asked");
}

/// Refuses what has waited its time with nobody offering.
void give_up(Proxy self) {
  auto& state = self->state;
  for (auto& [key, far] : state.far) {
    if (!state.offers[far.engine->name].empty()) continue;
    std::erase_if(far.waiting, [&](const auto& entry) {
      const auto& waiting = entry.second;
      if (now(self) - waiting.received < engine::Nanoseconds(offer_wait.count())) return false;
      refuse(self, waiting,
             {ErrorCode::unavailable,
              "no node offers a tokenizer for " + waiting.engine->name + " now", retry_ms});
      return true;
    });
  }
}

/// Opens a channel to a node that offers; with none, what waits goes on waiting for a while.
void look(Proxy self, Far& far) {
  auto& state = self->state;
  const auto& name = far.engine->name;
  const auto& offers = state.offers[name];
  if (offers.empty()) {  // it may be about to join, or to be back
    self->delayed_send(self, offer_wait, tick_atom::value);
    return;
  }
  far.channel = state.peers->open(offers.front(), {0, "tokenizer", name}, ChannelEnd(self));
}

Far* find(Proxy self, const ChannelRef& channel) {
  for (auto& [key, far] : self->state.far)
    if (far.channel == channel) return &far;
  return nullptr;
}

bool awaits(const Far& far, const transport::StreamId& stream, std::uint64_t epoch) {
  const auto found = far.waiting.find(stream);
  return found != far.waiting.end() && found->second.submit.epoch <= epoch;
}

void receive(Proxy self, const ChannelRef& channel, transport::NodeMessage& message) {
  auto* far = find(self, channel);
  if (far == nullptr) return;
  if (std::holds_alternative<transport::ChannelJoined>(message)) {
    far->open = true;
    self->state.peers->send(channel, describe_channel(*far->engine));
    for (const auto& [stream, waiting] : far->waiting) ask(self, *far, waiting);
  } else if (auto* admit = std::get_if<transport::Admit>(&message)) {
    // Of a run that a later epoch replaced meanwhile nobody wants to hear.
    if (!awaits(*far, admit->stream, admit->accepted.epoch)) return;
    const auto found = far->waiting.extract(admit->stream);
    const auto& waiting = found.mapped();
    if (auto good = answers(waiting, *admit); !good) return refuse(self, waiting, good.error());
    auto admission = from_wire(std::move(*admit), waiting.engine, now(self));
    // Its time began here, not when the other node took it up.
    admission.received = waiting.received;
    if (waiting.submit.deadline_ms != 0)
      admission.request.deadline =
          waiting.received + engine::Nanoseconds{waiting.submit.deadline_ms} * 1'000'000;
    self->send(self->state.session, tokenize_atom::value, std::move(admission));
  } else if (auto* refused = std::get_if<transport::RefusedNews>(&message)) {
    if (awaits(*far, refused->stream, refused->epoch) && far->waiting.erase(refused->stream) != 0)
      self->send(self->state.session, refused_atom::value, std::move(*refused));
  } else if (const auto* failed = std::get_if<transport::ChannelFailed>(&message)) {
    for (const auto& [stream, waiting] : std::exchange(far->waiting, {}))
      refuse(self, waiting, failed->error);
    far->channel = {};
    far->open = false;
  }
}

}  // namespace

TokenizerProxyActor::behavior_type tokenizer_proxy(Proxy self, AdmissionSink session,
                                                   PeerBoxPtr peers) {
  self->state.session = std::move(session);
  self->state.peers = std::move(peers);
  return {
      [self](tokenize_atom, const EngineFactsPtr& engine, transport::Peer& owner,
             transport::Submit& submit) {
        auto& far = self->state.far[transport::encode(0, describe_channel(*engine))];
        if (!far.engine) far.engine = engine;
        const auto stream = submit.stream;
        const auto& waiting =
            far.waiting
                .insert_or_assign(stream,
                                  TokenizerProxyState::Waiting{std::move(owner), std::move(submit),
                                                               now(self), engine})
                .first->second;
        if (far.open)
          ask(self, far, waiting);
        else if (far.channel == ChannelRef{})
          look(self, far);
      },
      [self](channel_atom, const ChannelRef& channel, transport::NodeMessage& message) {
        receive(self, channel, message);
      },
      [self](lost_atom, const ChannelRef& channel, const Error&) {
        for (auto& [name, offers] : self->state.offers) std::erase(offers, channel.link);
        for (auto& [key, far] : self->state.far) {
          if (far.channel != channel) continue;
          far.channel = {};
          far.open = false;
          if (!far.waiting.empty()) look(self, far);
        }
      },
      [self](peer_atom, const std::string& name, transport::LinkId link) {
        auto& offers = self->state.offers[name];
        if (std::ranges::find(offers, link) == offers.end()) offers.push_back(link);
        for (auto& [key, far] : self->state.far)
          if (far.engine->name == name && !far.waiting.empty() && far.channel == ChannelRef{})
            look(self, far);
      },
      [self](tick_atom) { give_up(self); },
  };
}

TokenizerStubActor::behavior_type tokenizer_stub(Stub self, ChannelRef channel, FactsLoader load,
                                                 PeerBoxPtr peers) {
  self->state.peers = std::move(peers);
  self->state.channel = channel;
  self->state.tokenizer = self->spawn<caf::linked>(tokenizer, AdmissionSink(self));
  self->state.peers->join(channel, ChannelEnd(self));
  self->state.peers->send(channel, transport::ChannelJoined{});
  return {
      [self, load](channel_atom, const ChannelRef&, transport::NodeMessage& message) {
        auto& state = self->state;
        if (const auto* opened = std::get_if<transport::ChannelOpened>(&message)) {
          auto facts = load();
          auto all = facts ? complete(std::move(*facts), *opened)
                           : Result<EngineFactsPtr>(tl::unexpected(facts.error()));
          if (all)
            state.engine = std::move(*all);
          else
            state.peers->send(state.channel, transport::ChannelFailed{all.error()});
        } else if (auto* ask = std::get_if<transport::Tokenize>(&message); ask && state.engine) {
          self->send(state.tokenizer, tokenize_atom::value, state.engine, std::move(ask->owner),
                     std::move(ask->submit));
        }
      },
      [self](lost_atom, const ChannelRef&, const Error&) {
        self->quit(caf::exit_reason::user_shutdown);
      },
      [self](tokenize_atom, Admission& admission) {
        self->state.peers->send(self->state.channel, to_wire(std::move(admission), now(self)));
      },
      [self](refused_atom, const Refusal& refusal) {
        self->state.peers->send(self->state.channel, refusal);
      },
  };
}

}  // namespace sluice::actors
