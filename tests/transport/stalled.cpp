// Shows that a client which takes nothing is let go, alone and with its streams kept for whoever
// comes back, and that one which is merely slow stays. The node is tests/transport/server.hpp; its
// heartbeats are switched off, so that nothing else ends a connection.

#include <boost/test/unit_test.hpp>
#include <zmq.hpp>

#include "tests/transport/gathered.hpp"
#include "tests/transport/raw_dealer.hpp"
#include "tests/transport/server.hpp"
#include "transport/connections.hpp"

using namespace sluice;
using namespace sluice::transport;
using namespace sluice::transport::testing;
using sluice::fakes::RawDealer;
using std::chrono::milliseconds;

namespace {

/// Tokens of a stream whose chunks are far more than a connection with little room takes at once.
constexpr std::uint32_t many = 20'000;

EndpointConfig patient(std::uint32_t stalled_ms) {
  EndpointConfig config;
  config.stalled_ms = stalled_ms;
  config.heartbeat_ms = 600'000;
  return config;
}

/// Nothing but the connection holds a stream up. Who is gone is found out by the next probe.
StreamConfig unbounded() {
  StreamConfig config;
  config.window_tokens = 1U << 30;
  config.probe_ns = 1'000'000;
  return config;
}

std::string submit_of(std::uint8_t number, std::uint64_t seed, std::uint32_t tokens) {
  Submit submit = request(seed, tokens);
  submit.stream.fill(number);
  submit.owner.fill(number);
  return encode(submit);
}

StreamId stream_of(std::uint8_t number) {
  StreamId id{};
  id.fill(number);
  return id;
}

/// For what may never happen, so that it is tried anew.
bool eventually_soon(const std::function<bool()>& happened) {
  for (int i = 0; i < 100; ++i) {
    if (happened()) return true;
    poll(nullptr, 0, 1);
  }
  return false;
}

/// Reads until the connection is broken off.
void check_broken_off(RawDealer& dealer) {
  ssize_t count = 1;
  while (count > 0) count = dealer.read(65536);
  BOOST_CHECK_EQUAL(count, -1);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(stalled)

BOOST_AUTO_TEST_CASE(who_takes_nothing_is_let_go_alone) {
  zmq::context_t context;
  Server server(context, patient(2000), unbounded());
  server.allow(many / 2);
  RawDealer silent(server.endpoint().listen_address());
  silent.send(submit_of(1, 3, many));
  const auto other = client_of(server, context);
  const StreamId others = other->submit(request(5, many)).value();
  BOOST_REQUIRE(eventually([&] { return server.endpoint().stats().clients_stalled == 1; }));
  BOOST_CHECK(eventually([&] { return server.lost >= 1; }));
  check_broken_off(silent);
  const std::string line = server.stalled();
  BOOST_TEST_CONTEXT(line) {
    BOOST_CHECK(line.find("line: 1;") != std::string::npos);
    BOOST_CHECK(line.find("127.0.0.1:") != std::string::npos);
    BOOST_CHECK(line.find("2000 ms") != std::string::npos);
  }
  // The stream waits for whoever comes for it.
  BOOST_CHECK_EQUAL(server.stops, 0);
  const auto late = client_of(server, context);
  BOOST_REQUIRE(late->subscribe(stream_of(1), 0));
  server.allow(many);
  check_whole(gather(*late, 1).at(stream_of(1)), 3, many);
  check_whole(gather(*other, 1).at(others), 5, many);
  BOOST_CHECK_EQUAL(server.endpoint().stats().clients_stalled, 1U);
}

// For longer than the kernel would bear, were it still asked to end who shows closed windows.
BOOST_AUTO_TEST_CASE(who_reads_slowly_stays) {
  zmq::context_t context;
  EndpointConfig config = patient(2000);
  config.stalled_kernel_ms = 1;  // the least: 4 s
  Server server(context, config, unbounded());
  RawDealer slow(server.endpoint().listen_address());
  slow.send(submit_of(1, 3, many));
  BOOST_REQUIRE(eventually([&] { return server.said == many; }));
  // Silent ones, one behind the other, measure the time: each is let go when the slow one might
  // have been.
  for (std::uint8_t i = 1; i <= 3; ++i) {
    RawDealer silent(server.endpoint().listen_address());
    silent.send(submit_of(static_cast<std::uint8_t>(i + 1), 4, many));
    BOOST_REQUIRE(eventually([&] {
      poll(nullptr, 0, 20);
      BOOST_REQUIRE_GT(slow.read(256), 0);
      return server.endpoint().stats().clients_stalled >= i;
    }));
    BOOST_CHECK_EQUAL(server.endpoint().stats().clients_stalled, i);
  }
  std::uint32_t next = 0;
  bool waited = false;  // for something that had not been read by then
  for (bool done = false; !done;) {
    const auto frame = slow.message();
    if (!frame) {
      BOOST_REQUIRE_GT(slow.read(65536), 0);
      waited = true;
      continue;
    }
    const auto message = decode(*frame, Limits{});
    BOOST_REQUIRE(message);
    if (const auto* chunk = std::get_if<Chunk>(&*message)) {
      BOOST_REQUIRE_EQUAL(chunk->part.first_index, next);
      next += static_cast<std::uint32_t>(chunk->part.tokens.size());
    }
    done = std::holds_alternative<Done>(*message);
  }
  BOOST_CHECK_EQUAL(next, many);
  BOOST_CHECK(waited);
}

BOOST_AUTO_TEST_CASE(who_took_over_a_name_and_takes_nothing_is_lost) {
  zmq::context_t context;
  EndpointConfig config = patient(1000);
  config.stalled_kernel_ms = 2000;
  Endpoint node(context, config, {[](Peer&&, Message&&, CurveKey&&) {}, [](Peer&&) {}});
  BOOST_REQUIRE(node.start());
  {
    RawDealer first(node.listen_address(), "name");
    first.send(encode(HealthRequest{}));
    BOOST_REQUIRE(eventually([&] { return node.stats().frames_in == 1; }));
    first.finish();
    while (first.read(4096) > 0) continue;  // until the node has closed it
  }
  const auto send = [&](std::size_t bytes) {
    node.send("name", std::make_shared<const std::string>(bytes, 'x'));
  };
  // It is sent to without having said anything. Until libzmq has forgotten the first, one that
  // comes by the same name gets nothing.
  std::optional<RawDealer> silent;
  BOOST_REQUIRE(eventually([&] {
    silent.emplace(node.listen_address(), "name");
    return eventually_soon([&] {
      send(1);
      if (silent->readable()) BOOST_REQUIRE_GT(silent->read(100), 0);
      return silent->message().has_value();
    });
  }));
  const auto before = node.stats();
  for (int i = 0; i < 100; ++i) send(10'000);
  BOOST_CHECK(eventually([&] {
    send(1);
    return node.stats().peers_lost > before.peers_lost;
  }));
  BOOST_CHECK_GE(node.stats().frames_out, before.frames_out + 100);  // it had been there
  BOOST_CHECK_EQUAL(node.stats().clients_stalled, 0U);               // the kernel did it
}

BOOST_AUTO_TEST_CASE(only_time_in_which_something_waits_and_nothing_is_taken_counts) {
  constexpr std::uint64_t limit = 800, interval = limit / Stall::looks;
  std::uint64_t now = 1'000'000;
  const auto looks_until_over = [&](Stall& stall, std::uint64_t taken, std::uint64_t passed) {
    int looks = 1;
    for (; !stall.look(taken, true, now += passed, limit); ++looks) BOOST_REQUIRE_LT(looks, 100);
    return looks;
  };
  Stall stall;
  BOOST_TEST(looks_until_over(stall, 0, interval) == 9);
  // Whoever takes a byte, or all, has its time anew.
  BOOST_TEST(!stall.look(1, true, now += interval, limit));
  BOOST_TEST(looks_until_over(stall, 1, interval) == 8);
  BOOST_TEST(!stall.look(1, false, now += interval, limit));
  BOOST_TEST(!stall.look(1, true, now += interval, limit));
  BOOST_TEST(looks_until_over(stall, 1, interval) == 8);
  // Between two looks nobody ran, for a minute: that counts as two.
  Stall paused;
  BOOST_TEST(!paused.look(5, true, now += interval, limit));
  BOOST_TEST(!paused.look(5, true, now += 60 * limit, limit));
  BOOST_TEST(looks_until_over(paused, 5, interval) == 6);
}

BOOST_AUTO_TEST_SUITE_END()
