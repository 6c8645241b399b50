// Shows that nodes with keys fail closed towards each other: who has no key, a wrong one or
// another's name is refused and counted, and whom they know goes on undisturbed. Waits are for what
// must come.

#include <poll.h>

#include <boost/test/unit_test.hpp>

#include "tests/transport/eavesdropper.hpp"
#include "tests/transport/peer_node.hpp"
#include "transport/curve.hpp"

using namespace sluice;
using namespace sluice::transport;
using namespace sluice::fakes;

namespace {

const std::string any_port = "tcp://127.0.0.1:0";

template <class Condition>
bool eventually(const Condition& condition) {
  for (int i = 0; i < 30'000; ++i) {
    if (condition()) return true;
    poll(nullptr, 0, 1);
  }
  return false;
}

bool says(const Error& error, std::string_view part) {
  BOOST_TEST_INFO(error.message);
  return error.message.find(part) != std::string::npos;
}

/// Two nodes that know each other, one of which listens.
struct Pair {
  CurveKeyPair keys_a = generate_curve_keys(), keys_b = generate_curve_keys();
  std::map<CurveKey, std::string> names{{keys_a.public_key, "a"}, {keys_b.public_key, "b"}};
  PeerNode b{"b", 1, listening(any_port), names, keys_b};
  PeerNode a{"a", 1, joining(b.address() + " b"), names, keys_a};
  LinkId link = a.up(0).link, far = b.up(0).link;

  /// The session that was there before is there still.
  void check() {
    a.endpoint().send(link, "still here");
    b.endpoint().send(far, "I hear");
    BOOST_TEST(b.heard(far, 1).back() == "still here");
    BOOST_TEST(a.heard(link, 1).back() == "I hear");
  }
};

/// A bare socket with keys of its own.
zmq::socket_t bare(zmq::context_t& context, const Pair& pair, const CurveKeyPair& keys,
                   const std::string& identity) {
  zmq::socket_t socket(context, zmq::socket_type::dealer);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::rcvtimeo, 30'000);
  socket.set(zmq::sockopt::routing_id, identity);
  secure_client(socket, {pair.keys_b.public_key, keys});
  socket.connect(pair.b.address());
  return socket;
}

/// Sends a frame; the reason in the `bye` that answers it, or "welcome", or nothing.
std::string ask(zmq::socket_t& socket, const LinkHeader& header, const std::string& payload) {
  socket.send(zmq::buffer(encode(header)), zmq::send_flags::sndmore);
  socket.send(zmq::buffer(payload));
  zmq::message_t head, body;
  if (!socket.recv(head)) return {};
  BOOST_REQUIRE(socket.recv(body));
  const auto answer = decode_link_header(head.to_string_view());
  BOOST_REQUIRE(answer);
  return answer->kind == LinkKind::welcome ? "welcome" : body.to_string();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(peer_curve)

BOOST_AUTO_TEST_CASE(nodes_with_keys_talk) {
  Pair pair;
  pair.check();
  BOOST_TEST(pair.b.guard().stats().admitted == 1U);
  BOOST_TEST(pair.b.up(0).peer.name == "a");
}

BOOST_AUTO_TEST_CASE(a_key_that_is_not_listed_is_refused) {
  Pair pair;
  auto config = joining(pair.b.address() + " b");
  config.lost_ms = 200;
  PeerNode stranger("a", 9, config, pair.names, generate_curve_keys());
  BOOST_CHECK(says(stranger.failure(0).why, "nobody answered"));
  BOOST_CHECK(eventually([&] { return pair.b.guard().stats().keys_refused >= 1; }));
  pair.check();
}

BOOST_AUTO_TEST_CASE(a_wrong_key_of_the_node_is_no_way_in) {
  Pair pair;
  auto config = joining(pair.b.address() + " b");
  config.lost_ms = 200;
  PeerNode a("a", 9, config, {{generate_curve_keys().public_key, "b"}}, pair.keys_a);
  BOOST_CHECK(says(a.failure(0).why, "nobody answered"));
  BOOST_CHECK(eventually([&] { return pair.b.guard().stats().handshakes_failed >= 1; }));
  pair.check();
}

BOOST_AUTO_TEST_CASE(plain_and_curve_do_not_mix) {
  Pair pair;
  auto config = joining(pair.b.address());
  config.lost_ms = 200;
  PeerNode plain("a", 9, config);
  BOOST_CHECK(says(plain.failure(0).why, "nobody answered"));
  BOOST_CHECK(eventually([&] { return pair.b.guard().stats().handshakes_failed >= 1; }));
  pair.check();
  PeerNode open("open", 1, listening(any_port));
  config = joining(open.address() + " open");
  config.lost_ms = 200;
  PeerNode careful("a", 1, config, {{generate_curve_keys().public_key, "open"}}, pair.keys_a);
  BOOST_CHECK(says(careful.failure(0).why, "nobody answered"));
  BOOST_TEST(open.endpoint().stats().links_up == 0U);
}

BOOST_AUTO_TEST_CASE(a_listed_node_cannot_speak_as_another) {
  Pair pair;
  const auto keys_c = generate_curve_keys();
  pair.names.emplace(keys_c.public_key, "c");
  pair.b.allow(pair.names);
  PeerNode c("a", 9, joining(pair.b.address() + " b"), pair.names, keys_c);
  BOOST_CHECK(says(c.failure(0).why, "speaks as node a is listed as node c's"));
  BOOST_CHECK(pair.b.endpoint().stats().refused >= 1);
  pair.check();
  PeerNode right("c", 1, joining(pair.b.address() + " b"), pair.names, keys_c);
  BOOST_TEST(right.up(0).peer.name == "b");
}

BOOST_AUTO_TEST_CASE(who_answers_under_another_name_is_refused) {
  const auto keys_a = generate_curve_keys(), keys_b = generate_curve_keys();
  const std::map<CurveKey, std::string> names{{keys_a.public_key, "a"}, {keys_b.public_key, "b"}};
  PeerNode b("someone", 1, listening(any_port), names, keys_b);
  PeerNode a("a", 1, joining(b.address() + " b"), names, keys_a);
  BOOST_CHECK(says(a.failure(0).why, "speaks as node someone is listed as node b's"));
  BOOST_TEST(a.endpoint().stats().links_up == 0U);
}

BOOST_AUTO_TEST_CASE(an_identity_taken_over_opens_no_session) {
  Pair pair;
  const auto keys_c = generate_curve_keys(), keys_d = generate_curve_keys();
  pair.names.insert({{keys_c.public_key, "c"}, {keys_d.public_key, "d"}});
  pair.b.allow(pair.names);
  zmq::context_t context;
  {
    auto c = bare(context, pair, keys_c, "same");
    BOOST_TEST(ask(c, {LinkKind::hello, 7, 3, 0, 0}, "c") == "welcome");
  }
  const auto up = pair.b.up(1);
  BOOST_TEST(up.peer.name == "c");
  // Until libzmq noticed that c is gone it drops who comes with c's identity; c's session lives on
  // for a second more.
  std::string answer;
  for (int i = 0; i < 300 && answer.empty(); ++i) {
    auto d = bare(context, pair, keys_d, "same");
    d.set(zmq::sockopt::rcvtimeo, 100);
    answer = ask(d, {LinkKind::data, 7, 3, 1, 0}, "a word in c's name");
  }
  BOOST_TEST(answer.find("over") != std::string::npos);
  BOOST_TEST(pair.b.endpoint().stats().messages_in == 0U);
}

BOOST_AUTO_TEST_CASE(a_recorded_hello_opens_no_session) {
  const auto keys_a = generate_curve_keys(), keys_b = generate_curve_keys();
  const std::map<CurveKey, std::string> names{{keys_a.public_key, "a"}, {keys_b.public_key, "b"}};
  PeerNode b("b", 1, listening(any_port), names, keys_b);
  std::string recorded;
  {
    Eavesdropper between(b.address());
    {
      PeerNode a("a", 1, joining(between.address() + " b"), names, keys_a);
      a.up(0);
    }
    recorded = between.heard();
  }
  b.down(0);
  const int raw = tcp_to(b.address());
  BOOST_TEST(send(raw, recorded.data(), recorded.size(), MSG_NOSIGNAL) ==
             static_cast<ssize_t>(recorded.size()));
  BOOST_CHECK(eventually([&] { return b.guard().stats().handshakes_failed >= 1; }));
  close(raw);
  BOOST_TEST(b.guard().stats().admitted == 1U);
  BOOST_TEST(b.endpoint().stats().links_up == 0U);
  // A hello from within an encrypted connection, said again, is one that is known already.
  zmq::context_t context;
  zmq::socket_t again(context, zmq::socket_type::dealer);
  again.set(zmq::sockopt::linger, 0);
  again.set(zmq::sockopt::rcvtimeo, 30'000);
  secure_client(again, {keys_b.public_key, keys_a});
  again.connect(b.address());
  BOOST_TEST(ask(again, {LinkKind::hello, 2, 5, 0, 0}, "a") == "welcome");
  BOOST_TEST(ask(again, {LinkKind::hello, 2, 5, 0, 0}, "a").find("later session") !=
             std::string::npos);
  BOOST_TEST(ask(again, {LinkKind::hello, 1, 1, 0, 0}, "a").find("newer process") !=
             std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_node_that_is_removed_is_cut_off) {
  Pair pair;
  pair.b.allow({{pair.keys_b.public_key, "b"}});
  BOOST_CHECK(says(pair.b.down(0).why, "no such key of node a any more"));
  pair.a.down(0);
  BOOST_CHECK(eventually([&] { return pair.b.guard().stats().keys_refused >= 1; }));  // it dials
  BOOST_TEST(pair.b.endpoint().stats().connections_cut == 1U);
  pair.b.allow(pair.names);
  BOOST_TEST(pair.b.up(1).peer.name == "a");
}

BOOST_AUTO_TEST_CASE(a_node_listed_under_a_new_name_is_cut_off) {
  Pair pair;
  pair.names[pair.keys_a.public_key] = "z";
  pair.b.allow(pair.names);
  BOOST_CHECK(says(pair.b.down(0).why, "no such key of node a any more"));
  pair.a.down(0);
  BOOST_CHECK(says(pair.a.failure(0).why, "listed as node z's"));
}

BOOST_AUTO_TEST_CASE(a_dialed_node_that_is_removed_is_not_dialed_again) {
  Pair pair;
  pair.a.allow({{pair.keys_a.public_key, "a"}});
  BOOST_CHECK(says(pair.a.down(0).why, "no such key of node b any more"));
  BOOST_CHECK(says(pair.a.failure(0).why, "the list of nodes has no key of node b"));
  pair.a.allow(pair.names);
  BOOST_TEST(pair.a.up(1).peer.name == "b");
}

BOOST_AUTO_TEST_CASE(processes_of_the_host_come_by_a_plain_socket) {
  const SocketPath socket("local");
  const std::string& path = socket.address;
  const auto keys = generate_curve_keys();
  auto config = listening(any_port);
  config.local_listen = path;
  PeerNode b("b", 1, config, {{keys.public_key, "b"}}, keys);
  PeerNode child("child", 1, joining(path));
  BOOST_TEST(child.up(0).peer.name == "b");
  child.endpoint().send(child.up(0).link, "hello");
  BOOST_TEST(b.heard(b.up(0).link, 1).front() == "hello");
  b.endpoint().send(b.up(0).link, "child");
  BOOST_TEST(child.heard(child.up(0).link, 1).front() == "child");
}

BOOST_AUTO_TEST_CASE(an_address_may_name_its_node) {
  const PeerAddress named("tcp://10.0.0.1:7 b"), plain("tcp://10.0.0.1:7"), path("ipc:///a b/c"),
      both("ipc:///a b/c d");
  BOOST_TEST(named.endpoint == "tcp://10.0.0.1:7");
  BOOST_TEST(named.name == "b");
  BOOST_TEST(plain.name.empty());
  BOOST_TEST(path.endpoint == "ipc:///a b/c");
  BOOST_TEST(path.name.empty());
  BOOST_TEST(both.endpoint == "ipc:///a b/c");
  BOOST_TEST(both.name == "d");
}

BOOST_AUTO_TEST_SUITE_END()
