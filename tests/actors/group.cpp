// Shows that nothing of a group outlives it. Rank 0 runs on threads of its own, as in a node; the
// test is rank 1 and the way to it.

#include "actors/group.hpp"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <future>
#include <thread>

#include "bench/instant_backend.hpp"

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

}  // namespace
