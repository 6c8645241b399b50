// Shows nodes talking over real sockets: messages both ways in order, over tcp and ipc; a node that
// listens late or is started anew is found again; garbage and foreign versions harm nobody. Waits
// are for what must come; none is for time to pass.

#include "transport/peer_endpoint.hpp"

#include <boost/test/unit_test.hpp>
#include <zmq.hpp>

#include "tests/transport/peer_node.hpp"

using namespace sluice;
using namespace sluice::transport;
using sluice::fakes::joining;
using sluice::fakes::listening;
using sluice::fakes::PeerNode;
using sluice::fakes::SocketPath;

BOOST_AUTO_TEST_SUITE(peer_endpoint)

BOOST_AUTO_TEST_CASE(messages_go_both_ways_in_order) {
  const SocketPath ipc("peers");
  for (const std::string& at : {std::string("tcp://127.0.0.1:0"), ipc.address}) {
    PeerNode b("b", 1, listening(at));
    PeerNode a("a", 1, joining(b.endpoint().listen_address()));
    const auto from_a = a.up(0), from_b = b.up(0);
    BOOST_TEST(from_a.peer.name == "b");
    BOOST_TEST(from_b.peer.name == "a");
    BOOST_TEST(from_a.dial.has_value());
    BOOST_TEST(!from_b.dial.has_value());
    std::vector<std::string> sent;
    for (int i = 0; i < 500; ++i) {
      sent.push_back(std::to_string(i) + std::string(i % 7 == 0 ? 20'000 : 5, 'x'));
      a.endpoint().send(from_a.link, sent.back());
      b.endpoint().send(from_b.link, sent.back());
    }
    BOOST_TEST(b.heard(from_b.link, 500) == sent);
    BOOST_TEST(a.heard(from_a.link, 500) == sent);
  }
}

BOOST_AUTO_TEST_CASE(a_node_that_comes_late_or_again_is_found) {
  const SocketPath socket("late");
  const std::string& path = socket.address;
  auto config = joining(path);
  config.lost_ms = 200;
  PeerNode a("a", 1, config);
  BOOST_TEST(a.failure(0).why.message.find("nobody answered") != std::string::npos);
  {
    PeerNode b("b", 1, listening(path));
    b.up(0);
    a.up(0);
  }  // it says goodbye
  BOOST_TEST(a.down(0).peer == "b");
  PeerNode b("b", 2, listening(path));
  b.up(0);
  BOOST_TEST(a.up(1).peer.incarnation == 2U);
}

BOOST_AUTO_TEST_CASE(a_message_that_is_refused_ends_the_session_with_the_reason) {
  PeerNode b("b", 1, listening("tcp://127.0.0.1:0"));
  PeerNode a("a", 1, joining(b.endpoint().listen_address()));
  a.endpoint().send(a.up(0).link, "bad");
  BOOST_TEST(b.down(0).why.message == "it is bad");
  BOOST_TEST(a.down(0).why.message.find("it is bad") != std::string::npos);
  a.endpoint().send(a.up(1).link, "good");  // a new session
  BOOST_TEST(b.heard(b.up(1).link, 1).front() == "good");
}

BOOST_AUTO_TEST_CASE(garbage_harms_nobody) {
  PeerNode b("b", 1, listening("tcp://127.0.0.1:0"));
  PeerNode a("a", 1, joining(b.endpoint().listen_address()));
  const auto link = a.up(0).link, far = b.up(0).link;
  zmq::context_t context;
  zmq::socket_t rude(context, zmq::socket_type::dealer);
  rude.set(zmq::sockopt::linger, 0);
  rude.connect(b.endpoint().listen_address());
  const auto say = [&](std::vector<std::string> parts) {
    for (std::size_t i = 0; i < parts.size(); ++i)
      rude.send(zmq::buffer(parts[i]),
                i + 1 < parts.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
  };
  say({""});
  say({std::string(36, 'x'), "x"});
  say({"a", "b", "c", "d"});
  auto foreign = encode(LinkHeader{LinkKind::hello, 1, 1, 0, 0});
  foreign[2] = 9;
  say({foreign, "a"});
  say({encode(LinkHeader{LinkKind::data, 1, 1, 1, 0}), "no session"});
  say({encode(LinkHeader{LinkKind::hello, 1, 1, 0, 0}), std::string(300, 'n')});
  std::vector<std::string> reasons;
  for (int i = 0; i < 2; ++i) {
    zmq::message_t header, why;
    BOOST_REQUIRE(rude.recv(header).has_value());
    BOOST_REQUIRE(rude.recv(why).has_value());
    reasons.push_back(why.to_string());
  }
  BOOST_TEST(reasons[0].find("over") != std::string::npos);
  BOOST_TEST(reasons[1].find("name") != std::string::npos);
  BOOST_TEST(b.endpoint().stats().malformed == 4U);
  a.endpoint().send(link, "still here");
  BOOST_TEST(b.heard(far, 1).front() == "still here");
}

BOOST_AUTO_TEST_CASE(what_cannot_be_bound_or_dialed_is_said) {
  zmq::context_t context;
  PeerEndpoint::Handler none{[](const LinkUp&) {}, [](const LinkDown&) {}, [](const LinkFailed&) {},
                             [](LinkId, std::string_view) { return Result<void>{}; }};
  PeerEndpoint bind(context, listening("tcp://256.0.0.1:1"), {"a", 1}, none);
  BOOST_TEST(bind.start().error().message.find("256.0.0.1") != std::string::npos);
  PeerEndpoint dial(context, joining("carrier-pigeon://coop"), {"a", 1}, none);
  const auto refused = dial.start();
  BOOST_TEST((refused.error().code == ErrorCode::bad_request));
  BOOST_TEST(refused.error().message.find("carrier-pigeon") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()
