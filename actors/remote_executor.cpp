#include "actors/remote_executor.hpp"

#include <utility>
#include <variant>

namespace sluice::actors {

Result<EngineFactsPtr> complete(std::shared_ptr<EngineFacts> facts,
                                const transport::ChannelOpened& opened) {
  if (facts->tokenizer->fingerprint() != opened.tokenizer)
    return fail(ErrorCode::unsupported,
                "engine {}: this node's tokenizer is not that of the node which computes: give "
                "both the same model files",
                facts->name);
  facts->numerics = opened.numerics;
  facts->backend = opened.backend;
  facts->site = opened.site;
  facts->scheduler = opened.scheduler;
  return EngineFactsPtr(std::move(facts));
}

transport::ChannelOpened describe_channel(const EngineFacts& facts) {
  return {facts.name,
          facts.numerics,
          facts.backend,
          facts.site,
          std::string(facts.tokenizer->fingerprint()),
          facts.scheduler};
}

ExecutorProxyActor::behavior_type executor_proxy(
    ExecutorProxyActor::stateful_pointer<ExecutorProxyState> self, std::size_t engine,
    transport::LinkId link, transport::OpenChannel what, FactsLoader load, PeerBoxPtr peers,
    LoadNews news) {
  self->state.peers = std::move(peers);
  self->state.channel = self->state.peers->open(link, std::move(what), ChannelEnd(self));
  const auto give_up = [self, engine, news](const Error& why) {
    self->send(news, ready_atom::value, EngineFailed{engine, why});
    self->quit(caf::sec::remote_linking_failed);
  };
  self->attach_functor(
      [peers = self->state.peers, channel = self->state.channel] { peers->close(channel); });
  return {
      [self](run_atom, engine::StepPlan& plan) {
        self->state.batcher = caf::actor_cast<ResultSink>(self->current_sender());
        self->state.peers->send(self->state.channel, std::move(plan));
      },
      [self](sample_atom, engine::StepMasks& masks) {
        self->state.peers->send(self->state.channel, std::move(masks));
      },
      [self, engine, news, load, give_up](channel_atom, const ChannelRef&,
                                          transport::NodeMessage& message) {
        if (auto* done = std::get_if<transport::StepDone>(&message)) {
          if (self->state.batcher) self->send(self->state.batcher, std::move(done->result));
        } else if (const auto* opened = std::get_if<transport::ChannelOpened>(&message)) {
          auto facts = load();
          auto all = facts ? complete(std::move(*facts), *opened)
                           : Result<EngineFactsPtr>(tl::unexpected(facts.error()));
          if (!all) return give_up(all.error());
          self->send(news, ready_atom::value, EngineReady{engine, std::move(*all)});
        } else if (const auto* failed = std::get_if<transport::ChannelFailed>(&message)) {
          give_up(failed->error);
        }
      },
      [self](lost_atom, const ChannelRef&, const Error&) {
        self->quit(caf::exit_reason::remote_link_unreachable);
      },
  };
}

ExecutorStubActor::behavior_type executor_stub(
    ExecutorStubActor::stateful_pointer<ExecutorStubState> self, ChannelRef channel,
    transport::OpenChannel what, RankSetup setup, PeerBoxPtr peers) {
  self->state.peers = peers;
  self->state.channel = channel;
  peers->join(channel, ChannelEnd(self));
  if (what.world > 1)
    self->state.rendezvous = std::make_shared<Rendezvous>(
        kernels::Shard{what.rank, what.world}, setup.collectives,
        [peers, channel, what](std::string address) {
          peers->send(channel,
                      transport::RankBlob{what.rank, what.world, what.epoch, std::move(address)});
        },
        setup.start_ms);
  const LoadNews news(self);
  const EngineLoader load = load_rank(std::move(setup.load), self->state.rendezvous);
  self->state.executor = setup.own_thread
                             ? self->spawn<caf::detached + caf::linked>(executor, 0, load, news)
                             : self->spawn<caf::linked>(executor, 0, load, news);
  // However this actor ends: no thread waits in a collective, and the far end hears of it.
  self->attach_functor([peers, channel, rendezvous = self->state.rendezvous] {
    if (rendezvous) rendezvous->cancel("the rank's channel closed");
    peers->close(channel);
  });
  return {
      [self](channel_atom, const ChannelRef&, transport::NodeMessage& message) {
        auto& state = self->state;
        if (auto* plan = std::get_if<transport::RunPlan>(&message))
          self->send(state.executor, run_atom::value, std::move(*plan));
        else if (auto* masks = std::get_if<transport::SampleMasks>(&message))
          self->send(state.executor, sample_atom::value, std::move(*masks));
        else if (auto* blobs = std::get_if<transport::RankBlobs>(&message))
          if (state.rendezvous) state.rendezvous->give(std::move(blobs->blobs));
      },
      [self](lost_atom, const ChannelRef&, const Error&) { self->quit(caf::exit_reason::kill); },
      [self](ready_atom, const EngineReady& ready) {
        self->state.peers->send(self->state.channel, describe_channel(*ready.facts));
      },
      [self](ready_atom, const EngineFailed& failed) {
        self->state.peers->send(self->state.channel, transport::ChannelFailed{failed.error});
      },
      [self](engine::StepResult& result) {
        const auto checksum = transport::tokens_checksum(result);
        self->state.peers->send(self->state.channel,
                                transport::StepDone{std::move(result), checksum});
      },
  };
}

}  // namespace sluice::actors
