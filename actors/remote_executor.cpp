#include "actors/remote_executor.hpp"

#include <chrono>
#include <utility>
#include <variant>

#include "actors/clock.hpp"

namespace sluice::actors {

Result<EngineFactsPtr> complete(std::shared_ptr<EngineFacts> facts,
                                const transport::ChannelOpened& opened) {
  if (facts->tokenizer->fingerprint() != opened.tokenizer)
    return fail(ErrorCode::unsupported,
                "engine {}: this node's tokenizer is not that of the node which computes: give "
                "both the same model files",
                facts->name);
  if (auto sound = engine::check_config(opened.scheduler); !sound)
    return tl::unexpected(sound.error());
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

namespace {

using Proxy = ExecutorProxyActor::stateful_pointer<ExecutorProxyState>;

void give_up(Proxy self, const Error& why) {
  const auto& setup = self->state.setup;
  self->send(setup.news, ready_atom::value, EngineFailed{setup.engine, why});
  self->quit(caf::sec::remote_linking_failed);
}

void take_facts(Proxy self, const transport::ChannelOpened& opened) {
  const auto& setup = self->state.setup;
  auto facts = setup.load();
  if (!facts) return give_up(self, facts.error());
  auto all = complete(std::move(*facts), opened);
  if (!all) return give_up(self, all.error());
  if (self->state.check) return;  // it is known already
  self->state.check.emplace(vocabulary_of(**all));
  self->send(setup.news, ready_atom::value,
             EngineReady{setup.engine, std::move(*all), ExecutorActor(self)});
}

void keep_watch(Proxy self) {
  if (const auto wait = self->state.steps.next_look())
    self->delayed_send(self, std::chrono::nanoseconds(*wait), tick_atom::value);
}

void watch(Proxy self) {
  auto& state = self->state;
  const auto hung = state.steps.look(now(self));
  if (!hung) return keep_watch(self);
  state.setup.log->node_failed(
      "step_hung", {ErrorCode::deadline,
                    fmt::format("step {} of engine {} took longer than {} ms: its executor is "
                                "given up, and another looked for",
                                *hung, state.setup.what.engine, state.setup.step_ms),
                    0});
  self->quit(caf::exit_reason::remote_link_unreachable);
}

}  // namespace

ExecutorProxyActor::behavior_type executor_proxy(Proxy self, ExecutorProxySetup setup) {
  self->state.steps = StepWatch(engine::Nanoseconds{1'000'000} * setup.step_ms);
  self->state.setup = std::move(setup);
  const auto& peers = self->state.setup.peers;
  self->state.channel =
      peers->open(self->state.setup.link, self->state.setup.what, ChannelEnd(self));
  self->attach_functor([peers, channel = self->state.channel] { peers->close(channel); });
  return {
      [self](run_atom, engine::StepPlan& plan) {
        self->state.batcher = caf::actor_cast<ResultSink>(self->current_sender());
        if (self->state.check) self->state.check->planned(plan);
        self->state.steps.began(plan.ticket, now(self));
        self->state.setup.peers->send(self->state.channel, std::move(plan));
        keep_watch(self);
      },
      [self](sample_atom, engine::StepMasks& masks) {
        if (self->state.check) self->state.check->planned(masks);
        self->state.setup.peers->send(self->state.channel, std::move(masks));
      },
      [self](channel_atom, const ChannelRef&, transport::NodeMessage& message) {
        if (auto* done = std::get_if<transport::StepDone>(&message)) {
          if (!self->state.check || !self->state.batcher) return;
          if (auto good = self->state.check->take(done->result); !good)
            return give_up(self, good.error());
          self->state.steps.ended(now(self));
          self->send(self->state.batcher, std::move(done->result));
        } else if (const auto* opened = std::get_if<transport::ChannelOpened>(&message)) {
          take_facts(self, *opened);
        } else if (const auto* failed = std::get_if<transport::ChannelFailed>(&message)) {
          give_up(self, failed->error);
        }
      },
      [self](lost_atom, const ChannelRef&, const Error&) {
        self->quit(caf::exit_reason::remote_link_unreachable);
      },
      [self](tick_atom) { watch(self); },
  };
}

namespace {

using Stub = ExecutorStubActor::stateful_pointer<ExecutorStubState>;

/// `addresses` of all ranks; none outside of a group.
void start_executor(Stub self, std::vector<std::string> addresses) {
  auto& state = self->state;
  state.executor =
      spawn_linked_executor(self, state.setup.own_thread,
                            load_rank(state.setup.load, state.rendezvous, std::move(addresses)));
}

void tell_address(Stub self, const kernels::Shard& shard) {
  auto& state = self->state;
  const auto& setup = state.setup;
  auto prepared = setup.prepare(shard, setup.collectives);
  if (!prepared)
    return state.peers->send(state.channel, transport::ChannelFailed{prepared.error()});
  state.rendezvous = std::make_shared<Rendezvous>(std::move(*prepared), setup.start_ms);
  state.peers->send(state.channel, transport::RankBlob{state.rendezvous->address()});
  self->delayed_send(self, std::chrono::milliseconds(setup.start_ms), tick_atom::value);
}

}  // namespace

ExecutorStubActor::behavior_type executor_stub(
    ExecutorStubActor::stateful_pointer<ExecutorStubState> self, ChannelRef channel,
    transport::OpenChannel what, RankSetup setup, PeerBoxPtr peers) {
  self->state.setup = std::move(setup);
  self->state.peers = peers;
  self->state.channel = channel;
  peers->join(channel, ChannelEnd(self));
  if (what.world > 1)
    tell_address(self, {what.rank, what.world});
  else
    start_executor(self, {});
  // However this actor ends: no thread waits in a collective, and the far end hears of it.
  self->attach_functor([peers, channel, rendezvous = self->state.rendezvous] {
    if (rendezvous) rendezvous->cancel("the rank's channel closed");
    peers->close(channel);
  });
  // A backend answers a plan that cannot be with an assertion: it must not see one.
  const auto checked = [self](const auto& half) {
    auto& state = self->state;
    Result<void> good =
        state.check ? state.check->take(half)
                    : fail(ErrorCode::bad_request, "a plan came before the engine was ready");
    if (good) return true;
    state.peers->send(state.channel, transport::ChannelFailed{good.error()});
    self->quit(caf::exit_reason::kill);
    return false;
  };
  return {
      [self, checked](channel_atom, const ChannelRef&, transport::NodeMessage& message) {
        auto& state = self->state;
        if (auto* plan = std::get_if<transport::RunPlan>(&message)) {
          if (checked(*plan)) self->send(state.steps, run_atom::value, std::move(*plan));
        } else if (auto* masks = std::get_if<transport::SampleMasks>(&message)) {
          if (checked(*masks)) self->send(state.steps, sample_atom::value, std::move(*masks));
        } else if (auto* blobs = std::get_if<transport::RankBlobs>(&message)) {
          if (state.rendezvous && !state.executor) start_executor(self, std::move(blobs->blobs));
        }
      },
      [self](lost_atom, const ChannelRef&, const Error&) { self->quit(caf::exit_reason::kill); },
      [self](ready_atom, const EngineReady& ready) {
        self->state.steps = ready.steps;
        self->state.check.emplace(ready.facts->scheduler, vocabulary_of(*ready.facts));
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
      [self](tick_atom) {
        const auto& state = self->state;
        if (!state.executor)
          state.peers->send(
              state.channel,
              transport::ChannelFailed{
                  {ErrorCode::deadline,
                   fmt::format("no other rank's address came within {} ms: the leader has not all",
                               state.setup.start_ms),
                   0}});
      },
  };
}

}  // namespace sluice::actors
