// Shows that the I/O thread and the client library carry streams whole over tcp, ipc and inproc,
// that bad endpoints and bad frames get typed errors, and that slow, lost and hostile peers hurt
// nobody else. The node is tests/transport/server.hpp; hostile peers are bare sockets.

#include "transport/endpoint.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <thread>
#include <zmq.hpp>

#include "tests/transport/gathered.hpp"
#include "tests/transport/rude.hpp"
#include "tests/transport/server.hpp"
#include "transport/client.hpp"
#include "transport/handover.hpp"

using namespace sluice;
using namespace sluice::transport;
using namespace sluice::transport::testing;
using std::chrono::milliseconds;

namespace {

const std::string ipc = "ipc://";

/// A folder of its own for each test, for ipc sockets.
struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "sluice-XXXXXX").string();
    BOOST_REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

EndpointConfig at(const std::string& listen) {
  EndpointConfig config;
  config.listen = listen;
  return config;
}

/// A peer that knows no protocol: a bare DEALER.
zmq::socket_t bare(zmq::context_t& context, const std::string& address) {
  zmq::socket_t socket(context, zmq::socket_type::dealer);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::rcvtimeo, 30'000);
  socket.connect(address);
  return socket;
}

Message answer(zmq::socket_t& socket) {
  zmq::message_t frame;
  BOOST_REQUIRE(socket.recv(frame));
  after_receive();
  auto message = decode({static_cast<const char*>(frame.data()), frame.size()}, Limits{});
  BOOST_REQUIRE_MESSAGE(message, message.error().message);
  return *message;
}

Failed refusal_of(zmq::socket_t& socket, const std::string& frame) {
  before_send();
  socket.send(zmq::buffer(frame));
  return std::get<Failed>(answer(socket));
}

zmq::socket_t subscriber_to(zmq::context_t& context, const std::string& address,
                            std::string_view topic, int high_water = 1000) {
  zmq::socket_t socket(context, zmq::socket_type::sub);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::rcvtimeo, 30'000);
  socket.set(zmq::sockopt::rcvhwm, high_water);
  socket.connect(address);
  socket.set(zmq::sockopt::subscribe, topic);
  return socket;
}

StreamId numbered(std::uint8_t number) {
  StreamId id{};
  id.fill(number);
  return id;
}
std::string_view topic_of(const StreamId& id) {
  return {reinterpret_cast<const char*>(id.data()), id.size()};
}

Error bind_error(const std::string& listen, const std::string& publish = "") {
  zmq::context_t context;
  EndpointConfig config = at(listen);
  config.publish = publish;
  Endpoint endpoint(context, config, {[](Peer&&, Message&&, CurveKey&&) {}, [](Peer&&) {}});
  const auto started = endpoint.start();
  BOOST_REQUIRE_MESSAGE(!started, listen << " was bound");
  BOOST_TEST_MESSAGE(started.error().message);
  return started.error();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(endpoint)

BOOST_AUTO_TEST_CASE(streams_over_every_transport) {
  Folder folder;
  for (const std::string& listen :
       {std::string("tcp://127.0.0.1:0"), ipc + (folder.path / "node").string(),
        std::string("inproc://node")}) {
    BOOST_TEST_CONTEXT(listen) {
      zmq::context_t context;
      Server server(context, at(listen));
      const auto client = client_of(server, context);
      BOOST_CHECK_EQUAL(client->welcome().models.at(0).name, "made-up");
      std::map<StreamId, std::uint64_t> seeds;
      for (std::uint64_t seed = 1; seed <= 8; ++seed)
        seeds[client->submit(request(seed, 100 * static_cast<std::uint32_t>(seed))).value()] = seed;
      for (const auto& [id, got] : gather(*client, 8)) {
        BOOST_CHECK_EQUAL(got.accepted, 1);
        check_whole(got, seeds.at(id), 100 * static_cast<std::uint32_t>(seeds.at(id)));
        BOOST_CHECK(got.done->finish.at(0) == engine::FinishReason::length);
      }
      // Everything was acknowledged, so nobody waits for more.
      BOOST_CHECK(eventually([&] { return server.settled == 8; }));
      BOOST_CHECK_EQUAL(client->stats(milliseconds(30'000)).value().values.at(0).second, 0.0);
      BOOST_CHECK(client->health(milliseconds(30'000)).value().ready);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_window_smaller_than_the_stream) {
  zmq::context_t context;
  StreamConfig tight;
  tight.window_tokens = 4;
  tight.chunk_tokens_max = 3;
  Server server(context, at("inproc://node"), tight);
  const auto client = client_of(server, context);
  client->submit(request(5, 1000)).value();
  check_whole(gather(*client, 1).begin()->second, 5, 1000);
}

BOOST_AUTO_TEST_CASE(subscribers_see_all_of_it) {
  zmq::context_t context;
  Server server(context, at("tcp://127.0.0.1:0"));
  server.allow(50);
  const auto owner = client_of(server, context);
  const StreamId id = owner->submit(request(3, 3000)).value();
  const auto early = client_of(server, context);
  BOOST_REQUIRE(early->subscribe(id, 0));
  BOOST_REQUIRE(eventually([&] { return server.said == 50; }));  // the end may not be asked beyond
  const auto middle = client_of(server, context);
  BOOST_REQUIRE(middle->subscribe(id, 20));
  const auto beyond = client_of(server, context);
  BOOST_REQUIRE(beyond->subscribe(numbered(9), 0));
  BOOST_CHECK(gather(*beyond, 1).begin()->second.failed->error.code == ErrorCode::not_found);
  BOOST_REQUIRE(eventually([&] { return server.endpoint().stats().subscriptions >= 2; }));
  server.allow(3000);
  check_whole(gather(*early, 1).at(id), 3, 3000);
  check_whole(gather(*middle, 1).at(id), 3, 3000, 20);
  const auto late = client_of(server, context);
  BOOST_REQUIRE(late->subscribe(id, 0));  // the owner has not acknowledged anything yet
  check_whole(gather(*late, 1).at(id), 3, 3000);
  check_whole(gather(*owner, 1).at(id), 3, 3000);
}

BOOST_AUTO_TEST_CASE(cancel_and_refusal) {
  zmq::context_t context;
  Server server(context, at("inproc://node"));
  server.allow(10);
  const auto client = client_of(server, context);
  const StreamId id = client->submit(request(3, 1000)).value();
  Gathered got;
  while (got.tokens.size() < 10) got.take(client->next(milliseconds(30'000)).value().event);
  client->cancel(id);
  while (!got.ended()) got.take(client->next(milliseconds(30'000)).value().event);
  BOOST_CHECK(got.done.value().finish.at(0) == engine::FinishReason::cancelled);
  BOOST_CHECK_EQUAL(got.done->tokens.at(0), 10U);

  Submit refused = request(1, 1);
  refused.prompt = "refuse me";
  client->submit(refused).value();
  const auto failed = gather(*client, 1).begin()->second.failed;
  BOOST_CHECK(failed->error.code == ErrorCode::overloaded);
  BOOST_CHECK_EQUAL(failed->error.retry_after_ms, 77U);

  Submit negative = request(1, 1);
  negative.sampling.temperature = -1;
  const StreamId bad = client->submit(negative).value();
  const auto answered = gather(*client, 1);
  BOOST_CHECK(answered.at(bad).failed->error.code == ErrorCode::bad_request);
  BOOST_CHECK(answered.at(bad).failed->error.message.find("temperature") != std::string::npos);
  BOOST_CHECK_EQUAL(server.starts, 2);
}

BOOST_AUTO_TEST_CASE(a_client_finds_its_node_again) {
  zmq::context_t context;
  Server server(context, at("tcp://127.0.0.1:0"));
  server.allow(100);
  const auto client = client_of(server, context);
  const StreamId id = client->submit(request(7, 500)).value();
  const auto reader = client_of(server, context);
  BOOST_REQUIRE(reader->subscribe(id, 0));
  Gathered got;
  Gathered read;
  while (got.tokens.size() < 100) got.take(client->next(milliseconds(30'000)).value().event);
  while (read.tokens.size() < 100) read.take(reader->next(milliseconds(30'000)).value().event);
  server.restart();
  server.allow(500);
  while (!got.ended()) got.take(client->next(milliseconds(60'000)).value().event);
  while (!read.ended()) read.take(reader->next(milliseconds(60'000)).value().event);
  check_whole(got, 7, 500);
  check_whole(read, 7, 500);
  BOOST_CHECK_EQUAL(server.starts, 1);
}

BOOST_AUTO_TEST_CASE(a_client_of_two_fronts_reaches_one) {
  // The sockets to the second are opened first, and closed while their connection is made: each
  // round is another moment of it.
  zmq::context_t context(1);
  Server first(context, at("tcp://127.0.0.1:*")), second(context, at("tcp://127.0.0.1:*"));
  ClientConfig config;
  config.connect = first.endpoint().listen_address() + "," + second.endpoint().listen_address();
  config.connect_timeout = milliseconds(30'000);
  for (int round = 0; round < 300; ++round) {
    const auto client = Client::connect(config);
    BOOST_REQUIRE_MESSAGE(client, "round " << round << ": " << client.error().message);
  }
}

BOOST_AUTO_TEST_CASE(what_is_submitted_at_once_arrives_at_once) {
  // A node that reads nothing at first, and has room for little.
  zmq::context_t context;
  zmq::socket_t node(context, zmq::socket_type::router);
  node.set(zmq::sockopt::linger, 0);
  node.set(zmq::sockopt::rcvhwm, 10);
  node.set(zmq::sockopt::rcvtimeo, 30'000);
  node.bind("tcp://127.0.0.1:*");
  std::thread greeter([&] {
    zmq::message_t peer, hello;
    if (!node.recv(peer) || !node.recv(hello)) return;
    node.send(peer, zmq::send_flags::sndmore);
    node.send(zmq::buffer(encode(Welcome{})), zmq::send_flags::none);
  });
  const auto client = Client::connect(
      {node.get(zmq::sockopt::last_endpoint), "test", milliseconds(30'000)}, &context);
  greeter.join();
  BOOST_REQUIRE_MESSAGE(client, client.error().message);
  constexpr std::size_t streams = 4096;
  Submit submit;
  submit.prompt = std::string(10'000, 'x');  // more than TCP takes
  for (std::size_t i = 0; i < streams; ++i) BOOST_REQUIRE((*client)->submit(submit));
  std::set<StreamId> arrived;
  for (std::size_t i = 0; i < streams; ++i) {
    zmq::message_t peer, frame;
    BOOST_REQUIRE(node.recv(peer) && node.recv(frame));
    after_receive();
    const auto message = decode({static_cast<const char*>(frame.data()), frame.size()}, {});
    BOOST_REQUIRE(message);
    arrived.insert(std::get<Submit>(*message).stream);
  }
  BOOST_TEST(arrived.size() == streams);
}

BOOST_AUTO_TEST_CASE(a_lost_client_is_noticed) {
  zmq::context_t context;
  StreamConfig quick;
  quick.grace_ns = 1;
  quick.probe_ns = 1'000'000;
  Server server(context, at("tcp://127.0.0.1:0"), quick);
  server.allow(10);
  {
    const auto client = client_of(server, context);
    client->submit(request(7, 100000)).value();
    Gathered got;
    while (got.tokens.size() < 10) got.take(client->next(milliseconds(30'000)).value().event);
  }
  // Nothing is said any more: the probe finds out, and the stream is abandoned.
  BOOST_CHECK(eventually([&] { return server.stops == 1; }));
  BOOST_CHECK_GE(server.lost, 1);
}

BOOST_AUTO_TEST_CASE(frames_that_are_no_message) {
  zmq::context_t context;
  EndpointConfig config = at("inproc://node");
  config.limits.frame_bytes_max = 1000;
  Server server(context, config);
  auto socket = bare(context, "inproc://node");
  BOOST_CHECK(refusal_of(socket, "").error.code == ErrorCode::bad_request);
  BOOST_CHECK(refusal_of(socket, "\xc1").error.code == ErrorCode::bad_request);
  BOOST_CHECK(refusal_of(socket, "\x81\xa4type\xa1?").error.code == ErrorCode::unsupported);
  Submit submit = request(1, 1);
  submit.stream = numbered(4);
  submit.owner = numbered(5);
  submit.epoch = 6;
  submit.prompt = std::string(1000, 'x');
  const Failed large = refusal_of(socket, encode(submit));
  BOOST_CHECK(large.error.code == ErrorCode::too_large);
  submit.prompt = "\xff";
  const Failed text = refusal_of(socket, encode(submit));
  BOOST_CHECK(text.error.code == ErrorCode::bad_request);
  BOOST_CHECK(text.stream == submit.stream);
  BOOST_CHECK_EQUAL(text.epoch, 6U);
  socket.send(zmq::str_buffer("one"), zmq::send_flags::sndmore);
  socket.send(zmq::str_buffer("two"));
  const Failed parts = std::get<Failed>(answer(socket));
  BOOST_CHECK(parts.error.message.find("2 frames") != std::string::npos);
  // What only a node says is told apart from what cannot be read.
  BOOST_CHECK(refusal_of(socket, encode(Health{true, ""})).error.code == ErrorCode::bad_request);
  BOOST_CHECK_EQUAL(server.endpoint().stats().frames_malformed, 6U);
  BOOST_CHECK_EQUAL(server.starts, 0);
}

BOOST_AUTO_TEST_CASE(endpoints_that_cannot_be) {
  Folder folder;
  zmq::context_t context;
  Server server(context, at("tcp://127.0.0.1:0"));
  const std::string taken = server.endpoint().listen_address();
  const Error in_use = bind_error(taken);
  BOOST_CHECK(in_use.code == ErrorCode::io);
  BOOST_CHECK(in_use.message.find(taken) != std::string::npos);
  BOOST_CHECK(in_use.message.find("in use") != std::string::npos);
  BOOST_CHECK(bind_error("tcp://127.0.0.1:0", taken).code == ErrorCode::io);
  for (const char* bad : {"", "127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:port",
                          "udp://127.0.0.1:5555", "pgm://eth0;239.192.1.1:5555"})
    BOOST_CHECK_MESSAGE(bind_error(bad).code == ErrorCode::bad_request, bad);
  BOOST_CHECK(bind_error("tcp://192.0.2.1:0").code == ErrorCode::io);  // of no machine
  BOOST_CHECK(bind_error("ipc:///proc/sluice").code == ErrorCode::io);
  BOOST_CHECK(bind_error(ipc + (folder.path / "no" / "node").string()).code == ErrorCode::io);
  BOOST_CHECK(bind_error(ipc + std::string(200, 'x')).code == ErrorCode::io);

  const std::string file = (folder.path / "file").string();
  std::ofstream(file) << "precious";
  BOOST_CHECK(bind_error(ipc + file).code == ErrorCode::io);
  BOOST_CHECK(std::filesystem::file_size(file) == 8);  // libzmq alone would have removed it

  const std::string node = ipc + (folder.path / "node").string();
  Server first(context, at(node));
  BOOST_CHECK(bind_error(node).message.find("in use") != std::string::npos);
  BOOST_CHECK(client_of(first, context)->health(milliseconds(30'000)).value().ready);

  // What a node left behind that died is no obstacle.
  const std::string stale = (folder.path / "stale").string();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  stale.copy(address.sun_path, sizeof address.sun_path - 1);
  const int dead = socket(AF_UNIX, SOCK_STREAM, 0);
  BOOST_REQUIRE_EQUAL(bind(dead, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  close(dead);
  Server second(context, at(ipc + stale));
  BOOST_CHECK(client_of(second, context)->health(milliseconds(30'000)).value().ready);
}

BOOST_AUTO_TEST_CASE(nobody_answers) {
  const auto silent = Client::connect({"tcp://127.0.0.1:1", "test", milliseconds(50)});
  BOOST_REQUIRE(!silent);
  BOOST_CHECK(silent.error().code == ErrorCode::unavailable);
  BOOST_CHECK(silent.error().message.find("tcp://127.0.0.1:1") != std::string::npos);
  BOOST_CHECK(silent.error().message.find("sluice node") != std::string::npos);
  for (const char* bad : {"", "nonsense", "tcp://127.0.0.1", "foo://bar"}) {
    const auto refused = Client::connect({bad, "test", milliseconds(50)});
    BOOST_REQUIRE(!refused);
    BOOST_CHECK_MESSAGE(refused.error().code == ErrorCode::bad_request, bad);
  }
}

BOOST_AUTO_TEST_CASE(only_whole_stream_ids_are_granted) {
  zmq::context_t context;
  EndpointConfig config = at("tcp://127.0.0.1:0");
  config.subscriptions_max = 3;
  Server server(context, config);
  Endpoint& node = server.endpoint();
  const StreamId secret = numbered(1);
  const StreamId known = numbered(2);
  auto spy = subscriber_to(context, node.publish_address(), "");
  for (std::size_t size : {1U, 8U, 15U})
    spy.set(zmq::sockopt::subscribe, topic_of(secret).substr(0, size));
  spy.set(zmq::sockopt::subscribe, std::string(topic_of(secret)) + "x");
  spy.set(zmq::sockopt::subscribe, std::string(200, 'x'));
  spy.set(zmq::sockopt::subscribe, topic_of(known));
  BOOST_REQUIRE(eventually([&] { return node.stats().subscriptions == 1; }));
  node.publish(secret, std::make_shared<const std::string>("secret"));
  node.publish(known, std::make_shared<const std::string>("known"));
  zmq::message_t part;
  BOOST_REQUIRE(spy.recv(part));
  BOOST_CHECK(part.to_string_view() == topic_of(known));
  BOOST_REQUIRE(spy.recv(part));
  BOOST_CHECK_EQUAL(part.to_string_view(), "known");

  // A second connection on the same topic, then the limit, then room again by leaving.
  {
    auto other = subscriber_to(context, node.publish_address(), topic_of(known));
    for (std::uint8_t i = 10; i < 20; ++i)
      other.set(zmq::sockopt::subscribe, topic_of(numbered(i)));
    BOOST_REQUIRE(eventually([&] { return node.stats().subscriptions == 3; }));
  }
  BOOST_CHECK(eventually([&] { return node.stats().subscriptions == 1; }));

  // A connection that says the same again and again counts once.
  zmq::socket_t repeating(context, zmq::socket_type::xsub);
  repeating.set(zmq::sockopt::linger, 0);
  repeating.connect(node.publish_address());
  const std::string subscription = std::string(1, '\1') + std::string(topic_of(numbered(30)));
  for (int i = 0; i < 10; ++i) repeating.send(zmq::buffer(subscription));
  repeating.send(zmq::str_buffer("\x02what"));
  BOOST_REQUIRE(eventually([&] { return node.stats().frames_malformed >= 7; }));
  BOOST_CHECK_EQUAL(node.stats().subscriptions, 2U);
  repeating.close();
  BOOST_CHECK(eventually([&] { return node.stats().subscriptions == 1; }));
  spy.close();
  BOOST_CHECK(eventually([&] { return node.stats().subscriptions == 0; }));
}

BOOST_AUTO_TEST_CASE(a_slow_subscriber_is_cut_off_alone) {
  zmq::context_t context;
  EndpointConfig config = at("tcp://127.0.0.1:0");
  config.subscriber_queue_messages = 50;
  Server server(context, config);
  Endpoint& node = server.endpoint();
  const StreamId id = numbered(1);
  auto slow = subscriber_to(context, node.publish_address(), topic_of(id), 1);
  auto fast = subscriber_to(context, node.publish_address(), topic_of(id));
  BOOST_REQUIRE(eventually([&] { return node.stats().subscriptions == 2; }));
  // More than the kernel's buffers hold for the one that does not read; the other reads each frame
  // before the next, so that it is never behind.
  const std::string filling(100'000, 'x');
  zmq::message_t part;
  std::uint32_t sent = 0;
  while (node.stats().frames_dropped == 0) {
    BOOST_REQUIRE_LT(sent, 5000U);
    node.publish(id, std::make_shared<const std::string>(std::to_string(sent) + ' ' + filling));
    BOOST_REQUIRE(fast.recv(part) && fast.recv(part));
    after_receive();
    BOOST_REQUIRE_EQUAL(std::stoul(part.to_string()), sent);
    ++sent;
  }
  for (const std::uint32_t end = sent + 100; sent < end; ++sent) {
    node.publish(id, std::make_shared<const std::string>(std::to_string(sent) + ' ' + filling));
    BOOST_REQUIRE(fast.recv(part) && fast.recv(part));
    after_receive();
    BOOST_REQUIRE_EQUAL(std::stoul(part.to_string()), sent);
  }
  // When it reads again it finds a gap, and then what comes: it can attach for the rest.
  std::uint32_t next = 0;
  bool gap = false;
  while (!gap) {
    node.publish(id, std::make_shared<const std::string>(std::to_string(sent++) + ' ' + filling));
    BOOST_REQUIRE(slow.recv(part) && slow.recv(part));
    after_receive();
    const auto index = static_cast<std::uint32_t>(std::stoul(part.to_string()));
    gap = index != next;
    next = index + 1;
  }
  BOOST_CHECK(gap);
}

BOOST_AUTO_TEST_CASE(garbage_hurts_nobody) {
  zmq::context_t context;
  Server server(context, at("tcp://127.0.0.1:0"));
  Endpoint& node = server.endpoint();
  const auto client = client_of(server, context);
  const StreamId id = client->submit(request(1, 20000)).value();
  std::mt19937_64 random(7);
  constexpr int peers = 100;
  for (int i = 0; i < peers; ++i) {
    fakes::visit_as_stranger(node.listen_address(), random);
    fakes::visit_with_nonsense(context, node.listen_address(), 10, random);
  }
  check_whole(gather(*client, 1).at(id), 1, 20000);
  BOOST_CHECK(eventually([&] { return node.stats().frames_malformed >= 10 * peers; }));
  BOOST_CHECK_EQUAL(server.starts, 1);
  BOOST_CHECK(client->health(milliseconds(30'000)).value().ready);
}

BOOST_AUTO_TEST_SUITE_END()
