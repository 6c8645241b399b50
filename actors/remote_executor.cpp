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
    EngineLoader load, PeerBoxPtr peers, bool detach) {
  self->state.peers = std::move(peers);
  self->state.channel = channel;
  self->state.peers->join(channel, ChannelEnd(self));
  const LoadNews news(self);
  self->state.executor =
      detach ? self->spawn<caf::detached + caf::monitored>(executor, 0, std::move(load), news)
             : self->spawn<caf::monitored>(executor, 0, std::move(load), news);
  const auto end = [self] {
    self->state.peers->close(self->state.channel);
    self->send_exit(self->state.executor, caf::exit_reason::kill);
    self->quit();
  };
  self->set_down_handler([end](const caf::down_msg&) { end(); });
  self->set_exit_handler([end](const caf::exit_msg&) { end(); });
  return {
      [self](channel_atom, const ChannelRef&, transport::NodeMessage& message) {
        if (auto* plan = std::get_if<transport::RunPlan>(&message))
          self->send(self->state.executor, run_atom::value, std::move(*plan));
        else if (auto* masks = std::get_if<transport::SampleMasks>(&message))
          self->send(self->state.executor, sample_atom::value, std::move(*masks));
      },
      [end](lost_atom, const ChannelRef&, const Error&) { end(); },
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
