#include "actors/group.hpp"

#include <algorithm>
#include <chrono>
#include <utility>
#include <variant>

#include "actors/clock.hpp"

namespace sluice::actors {
namespace {

using Self = GroupActor::stateful_pointer<GroupState>;

/// The group is over; `start` made sure that everything of it ends with this actor.
void fall(Self self, const Error& why) {
  auto& state = self->state;
  state.setup.log->node_failed("group_lost", why);
  if (state.rendezvous) state.rendezvous->cancel(why.message);
  if (!state.serving)
    self->send(state.setup.news, ready_atom::value, EngineFailed{state.setup.engine, why});
  self->quit(caf::exit_reason::remote_link_unreachable);
}

void fall(Self self, std::size_t rank, const Error& why) {
  const auto& state = self->state;
  fall(self, {why.code,
              fmt::format("rank {} of engine {} on node {}: {}", rank, state.setup.name,
                          state.ranks[rank].node, why.message),
              why.retry_after_ms});
}

void start_rank_0(Self self, std::vector<std::string> addresses) {
  auto& state = self->state;
  // However this actor ends, rank 0 does too. Its collectives fail everywhere, so that no thread
  // waits in one; the channels close, and so the far executors end.
  state.executor =
      spawn_linked_executor(self, state.setup.own_threads,
                            load_rank(state.setup.load, state.rendezvous, std::move(addresses)));
}

bool has_rank_0(const GroupState& state) { return state.setup.load != nullptr; }

void send_to_others(const GroupState& state, const transport::NodeMessage& message) {
  for (std::size_t i = has_rank_0(state) ? 1 : 0; i < state.ranks.size(); ++i)
    state.setup.peers->send(state.ranks[i].channel, message);
}

/// Once every rank has told its address, all of them get all.
void take_address(Self self, std::size_t rank, std::string address) {
  auto& state = self->state;
  if (state.told) return;
  state.ranks[rank].address = std::move(address);
  std::vector<std::string> all;
  for (const auto& each : state.ranks) {
    if (each.address.empty()) return;
    all.push_back(each.address);
  }
  state.told = true;
  send_to_others(state, transport::RankBlobs{all});
  if (has_rank_0(state)) start_rank_0(self, std::move(all));
}

void take_ready(Self self, std::size_t rank) {
  auto& state = self->state;
  state.ranks[rank].ready = true;
  if (state.serving || !std::ranges::all_of(state.ranks, &GroupState::Rank::ready)) return;
  state.serving = true;
  self->send(state.setup.news, ready_atom::value,
             EngineReady{state.setup.engine, state.facts, ExecutorActor(self)});
}

/// What rank 0 elsewhere says of the engine.
void take_facts(Self self, const transport::ChannelOpened& opened) {
  auto& state = self->state;
  if (state.facts) return;  // it is known already
  auto own = state.setup.facts();
  if (!own) return fall(self, 0, own.error());
  auto all = complete(std::move(*own), opened);
  if (!all) return fall(self, 0, all.error());
  state.facts = std::move(*all);
  state.check.emplace(vocabulary_of(*state.facts));
  take_ready(self, 0);
}

/// Hands on what all ranks have computed, in order.
void compare(Self self) {
  auto& state = self->state;
  while (
      std::ranges::none_of(state.ranks, [](const auto& rank) { return rank.checksums.empty(); })) {
    const auto first = state.ranks.front().checksums.front();
    for (std::size_t i = 1; i < state.ranks.size(); ++i)
      if (state.ranks[i].checksums.front() != first)
        return fall(self, i,
                    {ErrorCode::internal,
                     fmt::format("computed other tokens than rank 0 in step {}: the ranks' weights "
                                 "or processors differ",
                                 state.results.front().ticket),
                     0});
    for (auto& rank : state.ranks) rank.checksums.pop_front();
    auto result = std::move(state.results.front());
    state.results.pop_front();
    state.steps.ended(now(self));
    if (state.batcher) self->send(state.batcher, std::move(result));
  }
}

/// Rank 0's, wherever it is.
void take_result(Self self, engine::StepResult result) {
  auto& state = self->state;
  state.ranks[0].checksums.push_back(transport::tokens_checksum(result));
  state.results.push_back(std::move(result));
  compare(self);
}

void take_done(Self self, std::size_t rank, transport::StepDone& done) {
  auto& state = self->state;
  if (done.result.failed) return fall(self, rank, done.result.error);
  if (state.ranks[rank].answered++ == state.planned)
    return fall(self, rank, {ErrorCode::bad_request, "a result came of a step never planned", 0});
  if (rank == 0) {
    if (!state.check)
      return fall(self, 0, {ErrorCode::bad_request, "a result came before it was ready", 0});
    if (auto good = state.check->take(done.result); !good) return fall(self, 0, good.error());
    return take_result(self, std::move(done.result));
  }
  state.ranks[rank].checksums.push_back(done.checksum);
  compare(self);
}

void receive(Self self, std::size_t rank, transport::NodeMessage& message) {
  if (auto* done = std::get_if<transport::StepDone>(&message)) {
    take_done(self, rank, *done);
  } else if (auto* blob = std::get_if<transport::RankBlob>(&message)) {
    take_address(self, rank, std::move(blob->bytes));
  } else if (const auto* opened = std::get_if<transport::ChannelOpened>(&message)) {
    if (rank == 0)
      take_facts(self, *opened);
    else
      take_ready(self, rank);
  } else if (const auto* failed = std::get_if<transport::ChannelFailed>(&message)) {
    fall(self, rank, failed->error);
  }
}

std::size_t rank_of(const GroupState& state, const ChannelRef& channel) {
  const auto found = std::ranges::find(state.ranks, channel, &GroupState::Rank::channel);
  return static_cast<std::size_t>(found - state.ranks.begin());
}

/// Who is not there when the time to start is over.
std::string missing(const GroupState& state) {
  std::string text;
  for (std::size_t i = 0; i < state.ranks.size(); ++i) {
    const auto& rank = state.ranks[i];
    if (rank.ready) continue;
    text += fmt::format("{}rank {} on node {} {}", text.empty() ? "" : ", ", i, rank.node,
                        rank.address.empty() ? "did not tell its address" : "did not load");
  }
  return text;
}

/// Who has not answered the oldest step.
std::string silent(const GroupState& state) {
  std::string text;
  for (std::size_t i = 0; i < state.ranks.size(); ++i) {
    if (!state.ranks[i].checksums.empty()) continue;
    text += fmt::format("{}rank {} on node {}", text.empty() ? "" : ", ", i, state.ranks[i].node);
  }
  return text;
}

/// A rank may hang where no collective and no link notices: on its device, or after the step's last
/// collective.
void keep_watch(Self self) {
  if (const auto wait = self->state.steps.next_look())
    self->delayed_send(self, std::chrono::nanoseconds(*wait), watch_atom::value);
}

void watch(Self self) {
  auto& state = self->state;
  const auto hung = state.steps.look(now(self));
  if (!hung) return keep_watch(self);
  fall(self, {ErrorCode::deadline,
              fmt::format("step {} of engine {} took longer than {} ms: no answer of {}", *hung,
                          state.setup.name, state.steps.limit() / 1'000'000, silent(state)),
              0});
}

void start(Self self) {
  auto& state = self->state;
  const auto& setup = state.setup;
  const std::uint32_t here = has_rank_0(state) ? 1 : 0;
  const auto world = static_cast<std::uint32_t>(setup.others.size() + here);
  state.ranks.resize(world);
  if (here == 1) state.ranks[0].node = "of the leader";
  for (std::uint32_t rank = here; rank < world; ++rank) {
    const auto& node = setup.others[rank - here];
    state.ranks[rank].node = node.name;
    state.ranks[rank].channel = setup.peers->open(
        node.link, {0, "executor", setup.name, rank, world, setup.epoch}, ChannelEnd(self));
  }
  Result<void> prepared;
  if (here == 1) {
    if (auto own = setup.prepare({0, world}, {setup.host, setup.step_ms}))
      state.rendezvous = std::make_shared<Rendezvous>(std::move(*own), setup.start_ms);
    else
      prepared = tl::unexpected(own.error());
  }
  std::vector<ChannelRef> channels;
  for (const auto& rank : state.ranks) channels.push_back(rank.channel);
  self->attach_functor([peers = setup.peers, channels, rendezvous = state.rendezvous] {
    if (rendezvous) rendezvous->cancel("the group ended");
    for (const auto& channel : channels) peers->close(channel);
  });
  if (!prepared) return fall(self, 0, prepared.error());
  if (state.rendezvous) take_address(self, 0, state.rendezvous->address());
  self->delayed_send(self, std::chrono::milliseconds(setup.start_ms), tick_atom::value);
}

}  // namespace

GroupActor::behavior_type group(Self self, GroupSetup setup) {
  self->state.steps = StepWatch(engine::Nanoseconds{2'000'000} * setup.step_ms);
  self->state.setup = std::move(setup);
  start(self);
  self->set_exit_handler([self](const caf::exit_msg& message) {
    if (self->state.executor && message.source == self->state.executor.address())
      fall(self, 0, {ErrorCode::unavailable, self->system().render(message.reason), 0});
    else
      self->quit(message.reason);
  });
  return {
      [self](run_atom, engine::StepPlan& plan) {
        auto& state = self->state;
        state.batcher = caf::actor_cast<ResultSink>(self->current_sender());
        ++state.planned;
        state.steps.began(plan.ticket, now(self));
        keep_watch(self);
        if (state.check) state.check->planned(plan);
        send_to_others(state, transport::NodeMessage(plan));
        if (state.own_steps) self->send(state.own_steps, run_atom::value, std::move(plan));
      },
      [self](sample_atom, engine::StepMasks& masks) {
        auto& state = self->state;
        if (state.check) state.check->planned(masks);
        send_to_others(state, transport::NodeMessage(masks));
        if (state.own_steps) self->send(state.own_steps, sample_atom::value, std::move(masks));
      },
      [self](channel_atom, const ChannelRef& channel, transport::NodeMessage& message) {
        receive(self, rank_of(self->state, channel), message);
      },
      [self](lost_atom, const ChannelRef& channel, const Error& why) {
        if (why.code == ErrorCode::cancelled)                  // this node stops
          return self->quit(caf::exit_reason::user_shutdown);  // links pass on no normal exit
        fall(self, rank_of(self->state, channel), why);
      },
      [self](ready_atom, const EngineReady& ready) {
        self->state.facts = ready.facts;
        self->state.own_steps = ready.steps;
        take_ready(self, 0);
      },
      [self](ready_atom, const EngineFailed& failed) { fall(self, 0, failed.error); },
      [self](engine::StepResult& result) {
        if (result.failed) return fall(self, 0, result.error);
        take_result(self, std::move(result));
      },
      [self](tick_atom) {
        if (self->state.serving) return;
        fall(self,
             {ErrorCode::deadline,
              fmt::format("the group of engine {} did not form within {} ms: {}",
                          self->state.setup.name, self->state.setup.start_ms, missing(self->state)),
              0});
      },
      [self](watch_atom) { watch(self); },
  };
}

}  // namespace sluice::actors
