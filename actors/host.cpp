#include "actors/host.hpp"

#include <algorithm>
#include <utility>
#include <variant>

#include "actors/remote_batcher.hpp"
#include "actors/remote_tokenizer.hpp"

namespace sluice::actors {
namespace {

using Self = HostActor::stateful_pointer<HostState>;

transport::Offers offers_of(const HostState& state) {
  transport::Offers out;
  for (const auto& engine : state.setup.engines) {
    if (engine.tokenizer) out.offers.push_back({"tokenizer", engine.name});
    if (engine.executor && !state.executors.contains(engine.name))
      out.offers.push_back({"executor", engine.name});
  }
  for (const auto& serving : state.batchers) out.offers.push_back({"batcher", serving.facts->name});
  return out;
}

void offer_to_all(Self self) {
  const auto offers = offers_of(self->state);
  for (const auto& [link, name] : self->state.peers) self->state.setup.peers->tell(link, offers);
}

const HostedEngine* find_engine(const HostState& state, const std::string& name) {
  const auto& engines = state.setup.engines;
  const auto found = std::ranges::find(engines, name, &HostedEngine::name);
  return found == engines.end() ? nullptr : &*found;
}

/// Why a channel is not opened; empty when it is.
Error serve(Self self, ChannelRef channel, const transport::OpenChannel& what) {
  auto& state = self->state;
  if (what.service == "batcher") {
    for (const auto& serving : state.batchers) {
      if (serving.facts->name != what.engine) continue;
      self->spawn(batcher_stub, channel, serving.facts, serving.batcher, state.setup.peers);
      return {};
    }
    return {ErrorCode::unavailable, "engine " + what.engine + " does not serve here now", 0};
  }
  const auto* engine = find_engine(state, what.engine);
  if (what.service == "tokenizer" && engine != nullptr && engine->tokenizer) {
    self->spawn(tokenizer_stub, channel, engine->facts, state.setup.peers);
    return {};
  }
  if (what.service == "executor" && engine != nullptr && engine->executor) {
    // A leader that was started anew, and goes on all the same, asks with the epoch that it had.
    auto& newest = state.epochs[{what.engine, state.peers.at(channel.link)}];
    if (what.epoch < newest)
      return {ErrorCode::conflict,
              fmt::format("the leader of engine {} has a newer group, of epoch {}", what.engine,
                          newest),
              0};
    newest = what.epoch;
    if (state.executors.contains(what.engine))
      return {ErrorCode::unavailable, "the executor of engine " + what.engine + " is taken", 0};
    RankSetup rank{engine->executor, state.setup.collectives, state.setup.group_start_ms,
                   state.setup.own_threads, state.setup.prepare_group};
    auto stub = self->spawn<caf::monitored>(executor_stub, channel, what, std::move(rank),
                                            state.setup.peers);
    state.executors.emplace(what.engine, std::move(stub));
    offer_to_all(self);
    return {};
  }
  return {ErrorCode::not_found,
          fmt::format("this node offers no {} of engine '{}'", what.service, what.engine), 0};
}

void receive(Self self, transport::LinkId link, transport::NodeMessage& message) {
  auto& state = self->state;
  const auto peer = state.peers.find(link);
  if (peer == state.peers.end()) return;
  if (auto* offers = std::get_if<transport::Offers>(&message)) {
    self->send(state.setup.news, peer_atom::value,
               PeerOffers{link, peer->second, std::move(offers->offers)});
  } else if (const auto* what = std::get_if<transport::OpenChannel>(&message)) {
    const ChannelRef channel{link, what->number};
    if (auto why = serve(self, channel, *what); !why.message.empty())
      state.setup.peers->send(channel, transport::ChannelFailed{std::move(why)});
  }
}

}  // namespace

HostActor::behavior_type host(Self self, HostSetup setup) {
  self->state.setup = std::move(setup);
  self->set_down_handler([self](const caf::down_msg& message) {
    if (self->state.setup.executor_ended) self->state.setup.executor_ended();
    std::erase_if(self->state.executors,
                  [&](const auto& each) { return each.second.address() == message.source; });
    offer_to_all(self);
  });
  return {
      [self](peer_atom, const transport::LinkUp& up) {
        self->state.peers.emplace(up.link, up.peer.name);
        self->state.setup.log->node("peer_up", up.peer.name);
        self->state.setup.peers->tell(up.link, offers_of(self->state));
      },
      [self](lost_atom, const transport::LinkDown& down) {
        self->state.peers.erase(down.link);
        if (down.why.code != ErrorCode::cancelled)  // else it is this node that stops
          self->state.setup.log->node("peer_down", down.why.message);
        self->send(self->state.setup.news, peer_atom::value, PeerOffers{down.link, down.peer, {}});
      },
      [self](peer_atom, transport::LinkId link, transport::NodeMessage& message) {
        receive(self, link, message);
      },
      [self](engine_atom, const EngineFactsPtr& facts, const EngineActor& batcher) {
        self->state.batchers.push_back({facts, batcher});
        offer_to_all(self);
      },
      [self](engine_atom, const EngineFactsPtr& facts, const Error&) {
        std::erase_if(self->state.batchers,
                      [&](const auto& serving) { return serving.facts == facts; });
        offer_to_all(self);
      },
  };
}

}  // namespace sluice::actors
