// Shows that a secured endpoint fails closed: who has no key, a wrong one or a removed one gets
// nothing, is counted, and hurts nobody; and that clients are told why. The node is
// tests/transport/server.hpp; hostile peers are bare sockets, some of them not even ZeroMQ's.

#include "transport/curve.hpp"

#include <fcntl.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <mutex>
#include <string_view>

#include "tests/transport/eavesdropper.hpp"
#include "tests/transport/rude.hpp"
#include "tests/transport/server.hpp"
#include "transport/client.hpp"

using namespace sluice;
using namespace sluice::transport;
using namespace sluice::transport::testing;
using sluice::fakes::Eavesdropper;
using sluice::fakes::tcp_to;
using std::chrono::milliseconds;

namespace {

const std::string domain = "clients";

/// A node with keys, whose allow list has `ann`.
struct Fort {
  CurveKeyPair keys = generate_curve_keys(), ann = generate_curve_keys();
  zmq::context_t context;
  std::mutex mutex;
  std::vector<std::string> lines;
  std::shared_ptr<Guard> guard;
  std::unique_ptr<Server> server;

  explicit Fort(std::uint32_t handshake_ms = 10'000, std::uint32_t stalled_ms = 20'000) {
    auto started = Guard::start(context, [this](const std::string& line) {
      const std::lock_guard lock(mutex);
      lines.push_back(line);
    });
    BOOST_REQUIRE_MESSAGE(started, started.error().message);
    guard = *started;
    guard->allow(domain, {{ann.public_key, "ann"}});
    EndpointConfig config;
    config.handshake_ms = handshake_ms;
    config.stalled_ms = stalled_ms;
    config.curve = CurveServer{keys, domain, guard};
    server = std::make_unique<Server>(context, config, StreamConfig{},
                                      ClientGrants{{ann.public_key, {"ann", "lab"}}});
  }

  std::string address() const { return server->endpoint().listen_address(); }
  ClientConfig as(const CurveKeyPair& who) const {
    ClientConfig config{address(), "test", milliseconds(30'000)};
    config.curve = {keys.public_key, who};
    return config;
  }
  std::unique_ptr<Client> client() const {
    auto connected = Client::connect(as(ann));
    BOOST_REQUIRE_MESSAGE(connected, connected.error().message);
    return std::move(*connected);
  }
  /// Waits for a line of the guard's log; it writes some after the peer has noticed the refusal.
  bool says(std::string_view part) {
    return eventually([&] {
      const std::lock_guard lock(mutex);
      return std::ranges::any_of(
          lines, [&](const std::string& line) { return line.find(part) != std::string::npos; });
    });
  }
};

void check_unauthorized(const ClientConfig& config, std::string_view part) {
  const auto client = Client::connect(config);
  BOOST_REQUIRE(!client);
  BOOST_TEST_CONTEXT(client.error().message) {
    BOOST_CHECK(client.error().code == ErrorCode::unauthorized);
    BOOST_CHECK(client.error().message.find(part) != std::string::npos);
  }
}

/// Runs one stream to its end.
void check_stream(Client& client, std::uint32_t tokens = 40) {
  Submit submit;
  submit.prompt = "say something";
  submit.sampling.seed = 5;
  submit.max_tokens = tokens;
  const auto id = client.submit(submit);
  BOOST_REQUIRE(id);
  std::vector<Token> got;
  for (bool over = false; !over;) {
    const auto event = client.next(milliseconds(30'000));
    BOOST_REQUIRE_MESSAGE(event, "nothing came");
    BOOST_REQUIRE_MESSAGE(!event->event.failed, event->event.failed->error.message);
    got.insert(got.end(), event->event.tokens.begin(), event->event.tokens.end());
    over = event->event.done.has_value();
  }
  BOOST_REQUIRE_EQUAL(got.size(), tokens);
  for (std::uint32_t i = 0; i < tokens; ++i) BOOST_REQUIRE_EQUAL(got[i], token_at(5, i));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(curve)

BOOST_AUTO_TEST_CASE(an_allowed_client_streams_and_subscribes) {
  Fort fort;
  const auto client = fort.client();
  check_stream(*client);
  // The publisher asks for the same keys: this only ends if its chunks and terminal come.
  const auto watcher = fort.client();
  fort.server->allow(3);
  Submit submit;
  submit.prompt = "say something";
  submit.max_tokens = 500;
  const auto id = client->submit(submit);
  BOOST_REQUIRE(client->next(milliseconds(30'000)));  // accepted: it is there to subscribe to
  BOOST_REQUIRE(watcher->subscribe(*id, 0));
  BOOST_CHECK(eventually([&] {
    watcher->next(milliseconds(1));
    return fort.server->endpoint().stats().subscriptions == 1;
  }));
  fort.server->allow(1U << 30);
  for (bool over = false; !over;) {
    const auto event = watcher->next(milliseconds(30'000));
    BOOST_REQUIRE(event);
    BOOST_REQUIRE(!event->event.failed);
    over = event->event.done.has_value();
  }
  BOOST_CHECK_EQUAL(fort.guard->stats().keys_refused, 0U);
  BOOST_CHECK_EQUAL(fort.guard->stats().handshakes_failed, 0U);
  BOOST_CHECK(fort.guard->stats().admitted >= 3U);
}

BOOST_AUTO_TEST_CASE(who_is_not_allowed_is_told_why_and_counted) {
  Fort fort;
  const auto other = generate_curve_keys();
  check_unauthorized(fort.as(other), other.public_key);
  BOOST_CHECK_EQUAL(fort.guard->stats().keys_refused, 1U);
  BOOST_CHECK(fort.says(other.public_key + " is not in the allow list of clients"));

  ClientConfig plain = fort.as(fort.ann);
  plain.curve = {};
  check_unauthorized(plain, "does not take plain connections");
  BOOST_CHECK(fort.says("handshakes failed"));
  BOOST_CHECK(fort.guard->stats().handshakes_failed >= 1U);

  ClientConfig mistaken = fort.as(fort.ann);
  mistaken.curve.server_key = other.public_key;
  check_unauthorized(mistaken, other.public_key + " is not its key");

  // A domain of its own: a node's key opens nothing here.
  fort.guard->allow("nodes", {{other.public_key, "other"}});
  check_unauthorized(fort.as(other), other.public_key);
  BOOST_CHECK_EQUAL(fort.server->endpoint().stats().frames_in, 0U);
  check_stream(*fort.client());
}

BOOST_AUTO_TEST_CASE(a_plain_node_is_not_mistaken_for_a_secured_one) {
  zmq::context_t context;
  Server server(context, EndpointConfig{});
  ClientConfig config{server.endpoint().listen_address(), "test", milliseconds(30'000)};
  config.curve = {generate_curve_keys().public_key, generate_curve_keys()};
  check_unauthorized(config, config.curve.server_key);
  config.curve.keys = {};
  const auto half = Client::connect(config);
  BOOST_REQUIRE(!half);
  BOOST_CHECK(half.error().code == ErrorCode::bad_request);
}

BOOST_AUTO_TEST_CASE(without_a_guard_nobody_gets_in) {
  zmq::context_t context;
  const auto keys = generate_curve_keys();
  zmq::socket_t router(context, zmq::socket_type::router);
  router.set(zmq::sockopt::linger, 0);
  secure_server(router, keys, domain);
  router.bind("tcp://127.0.0.1:*");
  ClientConfig config{router.get(zmq::sockopt::last_endpoint), "test", milliseconds(30'000)};
  config.curve = {keys.public_key, generate_curve_keys()};
  check_unauthorized(config, "broke off");
  zmq::message_t message;
  BOOST_CHECK(!router.recv(message, zmq::recv_flags::dontwait));
}

BOOST_AUTO_TEST_CASE(one_guard_a_context) {
  zmq::context_t context;
  const auto first = Guard::start(context, [](const std::string&) {});
  BOOST_REQUIRE(first);
  const auto second = Guard::start(context, [](const std::string&) {});
  BOOST_REQUIRE(!second);
  BOOST_CHECK(second.error().code == ErrorCode::conflict);
}

BOOST_AUTO_TEST_CASE(a_removed_key_loses_its_connections_at_once) {
  Fort fort;
  const auto bob = generate_curve_keys();
  fort.guard->allow(domain, {{fort.ann.public_key, "ann"}, {bob.public_key, "bob"}});
  const auto ann = fort.client();
  // Bob's sockets are bare, so that nothing but the node ends them.
  zmq::context_t context;
  zmq::socket_t dealer(context, zmq::socket_type::dealer), sub(context, zmq::socket_type::sub);
  for (zmq::socket_t* socket : {&dealer, &sub}) {
    socket->set(zmq::sockopt::linger, 0);
    secure_client(*socket, {fort.keys.public_key, bob});
  }
  zmq::socket_t monitor(context, zmq::socket_type::pair);
  zmq_socket_monitor(dealer.handle(), "inproc://bob", ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
  monitor.connect("inproc://bob");
  dealer.connect(fort.address());
  dealer.send(zmq::buffer(encode(HealthRequest{})));
  sub.connect(fort.server->endpoint().publish_address());
  sub.set(zmq::sockopt::subscribe, std::string(16, 'x'));
  BOOST_CHECK(eventually([&] {
    const auto stats = fort.server->endpoint().stats();
    return stats.frames_in >= 2 && stats.subscriptions == 1;  // ann's hello too
  }));
  fort.guard->allow(domain, {{fort.ann.public_key, "ann"}});
  fort.server->endpoint().cut_removed();
  BOOST_CHECK(eventually([&] { return fort.server->endpoint().stats().connections_cut == 2; }));
  BOOST_CHECK(eventually([&] { return fort.server->endpoint().stats().subscriptions == 0; }));
  zmq::message_t event;
  monitor.set(zmq::sockopt::rcvtimeo, 30'000);
  BOOST_CHECK(monitor.recv(event));  // it came again, and was refused
  check_stream(*ann);
}

BOOST_AUTO_TEST_CASE(a_client_that_was_removed_hears_it) {
  Fort fort;
  const auto client = fort.client();
  fort.server->allow(3);
  Submit submit;
  submit.prompt = "say something";
  submit.max_tokens = 500;
  const auto id = client->submit(submit);
  BOOST_REQUIRE(client->next(milliseconds(30'000)));
  fort.guard->allow(domain, {});
  fort.server->endpoint().cut_removed();
  std::optional<Client::Event> event;
  do {
    event = client->next(milliseconds(30'000));
    BOOST_REQUIRE(event);
  } while (!event->event.failed);
  BOOST_CHECK(event->stream == *id);
  BOOST_CHECK(event->event.failed->error.code == ErrorCode::unauthorized);
  BOOST_CHECK(event->event.failed->error.message.find("refused the key") != std::string::npos);
  BOOST_CHECK(!client->submit(submit));
}

BOOST_AUTO_TEST_CASE(who_takes_nothing_is_let_go_by_name) {
  Fort fort(10'000, 2000);
  const auto client = fort.client();
  zmq::context_t context;
  zmq::socket_t dealer(context, zmq::socket_type::dealer);
  dealer.set(zmq::sockopt::linger, 0);
  dealer.set(zmq::sockopt::rcvhwm, 1);
  dealer.set(zmq::sockopt::rcvbuf, 4096);
  dealer.set(zmq::sockopt::reconnect_ivl, -1);  // libzmq issue 3937 would end this process
  secure_client(dealer, {fort.keys.public_key, fort.ann});
  dealer.connect(fort.address());
  Submit submit;
  submit.prompt = "say something";
  submit.stream.fill(1);
  submit.owner.fill(1);
  submit.max_tokens = 1000;
  dealer.send(zmq::buffer(encode(submit)));
  BOOST_CHECK(eventually([&] { return fort.server->endpoint().stats().clients_stalled == 1; }));
  const std::string line = fort.server->stalled();
  BOOST_CHECK_MESSAGE(line.find("the last, ann at 127.0.0.1:") != std::string::npos, line);
  check_stream(*client);
}

BOOST_AUTO_TEST_CASE(a_recorded_handshake_opens_nothing) {
  Fort fort;
  std::string recorded;
  {
    Eavesdropper between(fort.address());
    {
      ClientConfig config = fort.as(fort.ann);
      config.connect = between.address();
      auto client = Client::connect(config);
      BOOST_REQUIRE_MESSAGE(client, client.error().message);
    }
    recorded = between.heard();
  }
  const auto before = fort.server->endpoint().stats().frames_in;
  const auto admitted = fort.guard->stats().admitted;
  // Greeting and HELLO as they were: the node answers these to anybody. Then INITIATE, which proves
  // the key, and the sealed messages: the node's short-term key is another one now.
  constexpr std::size_t beginning = 64 + 202, answer = 64 + 170;
  const int raw = tcp_to(fort.address());
  const auto say = [&](const char* bytes, std::size_t count) {
    BOOST_REQUIRE_EQUAL(send(raw, bytes, count, MSG_NOSIGNAL), static_cast<ssize_t>(count));
  };
  BOOST_REQUIRE(recorded.size() > beginning);
  say(recorded.data(), beginning);
  char heard[answer];
  BOOST_REQUIRE_EQUAL(recv(raw, heard, answer, MSG_WAITALL), std::ssize(heard));
  say(recorded.data() + beginning, recorded.size() - beginning);
  BOOST_CHECK(eventually([&] { return fort.guard->stats().handshakes_failed == 1; }));
  close(raw);
  BOOST_CHECK_EQUAL(fort.guard->stats().admitted, admitted);
  BOOST_CHECK_EQUAL(fort.server->endpoint().stats().frames_in, before);
  check_stream(*fort.client());
  BOOST_CHECK(fort.says("replay"));
}

BOOST_AUTO_TEST_CASE(a_frame_that_is_too_large_gets_an_answer_or_the_door) {
  Fort fort;
  const auto client = fort.client();
  zmq::context_t context;
  for (const std::size_t times : {1U, 3U}) {
    zmq::socket_t dealer(context, zmq::socket_type::dealer);
    dealer.set(zmq::sockopt::linger, 0);
    dealer.set(zmq::sockopt::rcvtimeo, 30'000);
    secure_client(dealer, {fort.keys.public_key, fort.ann});
    zmq_socket_monitor(dealer.handle(), fmt::format("inproc://large-{}", times).c_str(),
                       ZMQ_EVENT_DISCONNECTED);
    zmq::socket_t monitor(context, zmq::socket_type::pair);
    monitor.set(zmq::sockopt::rcvtimeo, 30'000);
    monitor.connect(fmt::format("inproc://large-{}", times));
    dealer.connect(fort.address());
    dealer.send(zmq::buffer(std::string(times * Limits{}.frame_bytes_max + 1, 'x')));
    zmq::message_t message;
    if (times == 1) {
      BOOST_REQUIRE(dealer.recv(message));
      const auto failed = decode({static_cast<const char*>(message.data()), message.size()}, {});
      BOOST_CHECK(std::get<Failed>(*failed).error.code == ErrorCode::too_large);
    } else {
      BOOST_CHECK(monitor.recv(message));
    }
  }
  check_stream(*client);
}

BOOST_AUTO_TEST_CASE(half_open_connections_are_counted_and_closed_while_a_stream_runs) {
  constexpr std::size_t flood = 300;
  Fort fort(500);
  const auto client = fort.client();
  fort.server->allow(5);
  Submit submit;
  submit.prompt = "say something";
  submit.sampling.seed = 3;
  submit.max_tokens = 2000;
  BOOST_REQUIRE(client->submit(submit));
  std::vector<int> raw;
  for (std::size_t i = 0; i < flood; ++i) {
    raw.push_back(tcp_to(fort.address()));
    // Some say nothing, some begin well: ZMTP's signature.
    if (i % 2 == 0) send(raw.back(), "\xff\0\0\0\0\0\0\0\1\x7f", 10, MSG_NOSIGNAL);
  }
  fort.server->allow(1U << 30);
  std::size_t tokens = 0;
  for (bool over = false; !over;) {
    const auto event = client->next(milliseconds(30'000));
    BOOST_REQUIRE(event);
    BOOST_REQUIRE(!event->event.failed);
    tokens += event->event.tokens.size();
    over = event->event.done.has_value();
  }
  BOOST_CHECK_EQUAL(tokens, 2000U);
  BOOST_CHECK(eventually([&] { return fort.guard->stats().handshakes_failed >= flood; }));
  for (const int descriptor : raw) {
    // The node closed it: there is an end to read, behind what it greeted with.
    char bytes[256];
    pollfd end{descriptor, POLLIN, 0};
    ssize_t count = 1;
    while (count > 0 && poll(&end, 1, 30'000) == 1) count = recv(descriptor, bytes, 256, 0);
    BOOST_CHECK(count <= 0);
    close(descriptor);
  }
  check_stream(*fort.client());
}

BOOST_AUTO_TEST_CASE(one_line_an_interval) {
  LineLimit limit(100);
  BOOST_CHECK_EQUAL(limit.due(7), 1U);
  BOOST_CHECK_EQUAL(limit.due(8), 0U);
  BOOST_CHECK_EQUAL(limit.due(106), 0U);
  BOOST_CHECK_EQUAL(limit.due(107), 3U);
  BOOST_CHECK_EQUAL(limit.due(300), 1U);
}

BOOST_AUTO_TEST_SUITE_END()
