// Shows that nothing of a group outlives it. Rank 0 runs on threads of its own, as in a node; the
// test is rank 1 and the way to it. And that a group whose rank 0 is elsewhere believes no more of
// it than a proxy does of an executor.

#include "actors/group.hpp"

#include <boost/test/unit_test.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <cstring>
#include <future>
#include <thread>

#include "bench/instant_backend.hpp"
#include "tests/fakes/byte_facts.hpp"

namespace {

using namespace sluice;

/// Says when the device is let go.
struct WatchedBackend : bench::InstantBackend {
  WatchedBackend(kernels::Completion completion, std::promise<void>& when_gone)
      : InstantBackend(std::move(completion), false), gone(when_gone) {}
  ~WatchedBackend() override { gone.set_value(); }
  std::promise<void>& gone;
};

/// What rank 1 hears of the leader.
struct RankOneBox : actors::PeerBox {
  actors::ChannelRef open(transport::LinkId link, transport::OpenChannel,
                          actors::ChannelEnd) override {
    return {link, 1};
  }
  void join(actors::ChannelRef, actors::ChannelEnd) override {}
  void send(actors::ChannelRef, const transport::NodeMessage& message) override {
    if (const auto* all = std::get_if<transport::RankBlobs>(&message)) blobs.set_value(all->blobs);
  }
  void close(actors::ChannelRef) override {}
  void tell(transport::LinkId, const transport::NodeMessage&) override {}

  std::promise<std::vector<std::string>> blobs;
};

std::vector<std::byte> bytes_of(const std::string& text) {
  std::vector<std::byte> out(text.size());
  std::memcpy(out.data(), text.data(), text.size());
  return out;
}

actors::LoadNews::behavior_type tell_ready(actors::LoadNews::pointer, std::promise<void>* ready) {
  return {[ready](actors::ready_atom, const actors::EngineReady&) { ready->set_value(); },
          [](actors::ready_atom, const actors::EngineFailed&) {}};
}

constexpr auto patience = std::chrono::seconds(60);

/// A group whose rank 0 is here, and whose rank 1 is played by the test.
struct TwoRanks {
  caf::actor_system_config config;
  caf::actor_system system{config};
  std::promise<void> ready, gone;
  std::shared_ptr<RankOneBox> box = std::make_shared<RankOneBox>();
  std::shared_ptr<kernels::Communicator> communicator;
  actors::GroupActor group;
  const actors::ChannelRef channel{7, 1};

  explicit TwoRanks(std::uint32_t step_ms) {
    system.await_actors_before_shutdown(false);  // a rank that is left behind shall fail, not hang
    auto blobs = box->blobs.get_future();
    actors::NodeConfig quiet;
    quiet.log_level = "off";
    actors::GroupSetup setup;
    setup.name = "bytes";
    setup.epoch = 1;
    setup.load =
        [this](kernels::Completion completion,
               const std::shared_ptr<kernels::Communicator>&) -> Result<actors::LoadedEngine> {
      actors::LoadedEngine loaded;
      loaded.backend = std::make_unique<WatchedBackend>(std::move(completion), gone);
      loaded.facts = std::make_shared<actors::EngineFacts>();
      return loaded;
    };
    setup.others = {{7, "other"}};
    setup.host = "127.0.0.1";
    setup.start_ms = 60'000;
    setup.step_ms = step_ms;
    setup.peers = box;
    setup.news = system.spawn(tell_ready, &ready);
    setup.log = *actors::RequestLog::open(quiet);
    group = system.spawn(actors::group, std::move(setup));

    auto rank = *kernels::prepare_tcp({1, 2}, {"127.0.0.1", 60'000});
    const auto own = rank->address();
    tell(transport::RankBlob{{reinterpret_cast<const char*>(own.data()), own.size()}});
    BOOST_REQUIRE((blobs.wait_for(patience) == std::future_status::ready));
    std::vector<std::vector<std::byte>> all;
    for (const auto& blob : blobs.get()) all.push_back(bytes_of(blob));
    auto connected = rank->connect(all, 60'000);
    BOOST_REQUIRE(connected.has_value());
    communicator = *connected;
    tell(transport::ChannelOpened{});
    BOOST_REQUIRE((ready.get_future().wait_for(patience) == std::future_status::ready));
    // The first plan gives rank 0 a way to answer, and so something that keeps it.
    caf::anon_send(group, actors::run_atom::value, engine::StepPlan{});
  }

  void tell(transport::NodeMessage message) {
    caf::anon_send(group, actors::channel_atom::value, channel, std::move(message));
  }

  bool rank_0_ends() { return gone.get_future().wait_for(patience) == std::future_status::ready; }
};

/// Keeps what goes to each rank, by its link.
struct KeptBox : actors::PeerBox {
  actors::ChannelRef open(transport::LinkId link, transport::OpenChannel what,
                          actors::ChannelEnd) override {
    ranks[link] = what.rank;
    return {link, 1};
  }
  void join(actors::ChannelRef, actors::ChannelEnd) override {}
  void send(actors::ChannelRef channel, const transport::NodeMessage& message) override {
    sent[channel.link].push_back(message);
  }
  void close(actors::ChannelRef) override { ++closed; }
  void tell(transport::LinkId, const transport::NodeMessage&) override {}

  std::map<transport::LinkId, std::uint32_t> ranks;
  std::map<transport::LinkId, std::vector<transport::NodeMessage>> sent;
  std::size_t closed = 0;
};

struct Coordinated : caf::actor_system_config {
  Coordinated() { set("scheduler.policy", caf::atom("testing")); }
};

/// A group that has no rank here: links 7 and 8 lead to both of them, which the test plays, as it
/// plays the batcher.
struct RanksElsewhere {
  Coordinated config;
  caf::actor_system system{config};
  caf::scoped_actor batcher{system};
  std::shared_ptr<KeptBox> box = std::make_shared<KeptBox>();
  std::size_t ready = 0, failed = 0;
  bool over = false;
  actors::GroupActor group;

  RanksElsewhere() {
    actors::NodeConfig quiet;
    quiet.log_level = "off";
    actors::GroupSetup setup;
    setup.name = "bytes";
    setup.epoch = 1;
    setup.facts = [] { return Result<std::shared_ptr<actors::EngineFacts>>(fakes::byte_facts()); };
    setup.others = {{7, "first"}, {8, "second"}};
    setup.start_ms = setup.step_ms = 60'000;
    setup.peers = box;
    const auto hear = [this](actors::LoadNews::pointer) -> actors::LoadNews::behavior_type {
      return {[this](actors::ready_atom, const actors::EngineReady&) { ++ready; },
              [this](actors::ready_atom, const actors::EngineFailed&) { ++failed; }};
    };
    setup.news = system.spawn(hear);
    setup.log = *actors::RequestLog::open(quiet);
    group = system.spawn(actors::group, std::move(setup));
    group->attach_functor([this](const caf::error&) { over = true; });
    run();
  }
  ~RanksElsewhere() {
    caf::anon_send_exit(group, caf::exit_reason::user_shutdown);
    run();
  }

  void run() {
    dynamic_cast<caf::scheduler::test_coordinator&>(system.scheduler()).run();
  }
  void say(transport::LinkId link, transport::NodeMessage message) {
    caf::anon_send(group, actors::channel_atom::value, actors::ChannelRef{link, 1},
                   std::move(message));
    run();
  }

  /// Both ranks tell their addresses and load.
  void form() {
    for (const transport::LinkId link : {7, 8}) say(link, transport::RankBlob{"address"});
    for (const transport::LinkId link : {7, 8}) {
      auto facts = fakes::byte_facts();
      facts->scheduler = {
          .slots = 4, .blocks = 64, .block_tokens = 16, .context_tokens = 256, .rows_max = 64};
      say(link, actors::describe_channel(*facts));
    }
    BOOST_REQUIRE_EQUAL(ready, 1U);
  }

  /// A step that draws a token in slot 0.
  void plan(engine::Ticket ticket) {
    engine::StepPlan step;
    step.ticket = ticket;
    step.batch.segments.push_back({{0, 1}, 3, 1, kernels::Path::decode, true});
    batcher->send(group, actors::run_atom::value, std::move(step));
    run();
  }

  /// A rank's answer to it.
  void answer(transport::LinkId link, engine::Ticket ticket, Token token) {
    transport::StepDone done;
    done.result.ticket = ticket;
    done.result.slots.emplace_back();
    done.result.slots.back().slot = {0, 1};
    done.result.slots.back().tokens = {token};
    done.checksum = transport::tokens_checksum(done.result);
    say(link, std::move(done));
  }

  /// What the batcher was given, once.
  std::vector<Token> tokens() {
    std::vector<Token> all;
    batcher->receive_while([this] { return batcher->has_next_message(); })(
        [&](engine::StepResult& result) { all.push_back(result.slots.at(0).tokens.at(0)); });
    return all;
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(group)

#if !defined(__SANITIZE_THREAD__)  // how libcaf hands on what this thread spawns and says is unseen
// A bug once: links between actors pass on no normal exit, so a group that its stopping node ended
// left rank 0 behind, and the node waited for that for ever.
BOOST_AUTO_TEST_CASE(group_takes_rank_0_with_it_when_its_node_stops) {
  TwoRanks ranks(60'000);
  const Error stops{ErrorCode::cancelled, "the node stops", 0};
  caf::anon_send(ranks.group, actors::lost_atom::value, ranks.channel, stops);
  BOOST_TEST(ranks.rank_0_ends());
}

// Rank 1 takes part in everything and answers no step: no collective and no link notices.
BOOST_AUTO_TEST_CASE(group_ends_when_a_rank_does_not_answer) {
  TwoRanks ranks(20);
  BOOST_TEST(ranks.rank_0_ends());
}

#endif

BOOST_AUTO_TEST_CASE(ranks_elsewhere_form_a_group_and_agree) {
  RanksElsewhere ranks;
  BOOST_TEST((ranks.box->ranks == std::map<transport::LinkId, std::uint32_t>{{7, 0}, {8, 1}}));
  ranks.form();
  for (const transport::LinkId link : {7, 8}) {
    const auto* all = std::get_if<transport::RankBlobs>(&ranks.box->sent[link].at(0));
    BOOST_REQUIRE(all);
    BOOST_TEST(all->blobs.size() == 2U);
  }
  ranks.plan(1);
  BOOST_TEST(std::holds_alternative<transport::RunPlan>(ranks.box->sent[7].at(1)));
  BOOST_TEST(std::holds_alternative<transport::RunPlan>(ranks.box->sent[8].at(1)));
  ranks.answer(7, 1, 65);
  BOOST_TEST(ranks.tokens().empty());  // the other's has not come
  ranks.answer(8, 1, 65);
  BOOST_TEST((ranks.tokens() == std::vector<Token>{65}));
  BOOST_TEST(!ranks.over);
}

BOOST_AUTO_TEST_CASE(ranks_elsewhere_that_disagree_end_the_group) {
  RanksElsewhere ranks;
  ranks.form();
  ranks.plan(1);
  ranks.answer(7, 1, 65);
  ranks.answer(8, 1, 66);
  BOOST_TEST(ranks.tokens().empty());
  BOOST_TEST(ranks.over);
  BOOST_TEST(ranks.box->closed == 2U);
}

BOOST_AUTO_TEST_CASE(a_result_that_rank_0_elsewhere_cannot_have_ends_the_group) {
  RanksElsewhere early;
  early.answer(7, 1, 65);
  BOOST_TEST(early.over);
  BOOST_TEST(early.failed == 1U);
  RanksElsewhere ranks;
  ranks.form();
  ranks.plan(1);
  ranks.answer(8, 1, 70'000);
  ranks.answer(7, 1, 70'000);  // no token of this vocabulary, whoever agrees
  BOOST_TEST(ranks.tokens().empty());
  BOOST_TEST(ranks.over);
}

BOOST_AUTO_TEST_SUITE_END()
