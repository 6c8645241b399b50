// Shows that sessions between nodes keep their word over a network that is beyond terrible: breaks
// with all in flight, frames lost or doubled, one direction dead, a process that stands still, a
// process started anew while the old one lives on. Whatever the seed: a session delivers what was
// sent in order and without a gap, nothing before it is up or after it is down, both sides hear of
// its end, and once the network heals a new one is up. Then, one by one: bounds, back-off, zombies.

#include "transport/link.hpp"

#include <boost/test/unit_test.hpp>
#include <deque>
#include <memory>
#include <random>
#include <set>

using namespace sluice;
using namespace sluice::transport;

namespace {

constexpr std::uint64_t ms = 1'000'000;

// All in one thread: ThreadSanitizer has nothing to see there, and takes ten times as long.
#if defined(__SANITIZE_THREAD__)
constexpr std::uint64_t terrible_networks = 100;
#else
constexpr std::uint64_t terrible_networks = 2000;
#endif

struct Packet {
  LinkHeader header;
  std::string payload;
};

/// One process: its links, and what it was told.
struct Process {
  Links links;
  bool running = true;
  std::set<LinkId> up;
  std::map<LinkId, std::vector<std::string>> sent, delivered;
  std::map<LinkId, NodeIdentity> peers;
  std::uint64_t next_tick = 0;

  Process(const LinkConfig& config, NodeIdentity self) : links(config, std::move(self)) {}
};

/// A connection: both directions are queues in order, until it breaks.
struct Connection {
  Process* dialer = nullptr;
  Process* listener = nullptr;
  Route dial_route, listen_route;
  std::deque<Packet> there, back;
  bool there_dead = false, back_dead = false, broken = false;
};

struct Network {
  LinkConfig config;
  std::mt19937_64 random;
  std::uint64_t now = 1'000'000 * ms;
  std::vector<std::unique_ptr<Process>> processes;
  std::vector<std::unique_ptr<Connection>> connections;
  Process* listening = nullptr;
  std::uint64_t delivered = 0, downs = 0;

  explicit Network(std::uint64_t seed) : random(seed) {}

  bool one_in(std::uint64_t n) { return random() % n == 0; }

  Process& start(const std::string& name, std::uint64_t incarnation) {
    processes.push_back(std::make_unique<Process>(config, NodeIdentity{name, incarnation}));
    return *processes.back();
  }

  Connection* find(const Process& process, const Route& route) {
    for (auto& each : connections)
      if ((each->dialer == &process && each->dial_route == route) ||
          (each->listener == &process && each->listen_route == route))
        return each.get();
    return nullptr;
  }

  void act(Process& process, LinkOutput& out) {
    for (const auto& connect : out.connects) {
      for (auto& each : connections)
        if (each->dialer == &process) each->broken = true;
      auto made = std::make_unique<Connection>();
      made->dialer = &process;
      made->listener = listening;
      made->dial_route = connect.route;
      made->listen_route = "in " + std::to_string(connections.size());
      connections.push_back(std::move(made));
    }
    for (const auto& up : out.ups) {
      BOOST_REQUIRE(process.up.insert(up.link).second);
      process.peers[up.link] = up.peer;
    }
    for (const auto& down : out.downs) {
      BOOST_REQUIRE_EQUAL(process.up.erase(down.link), 1);
      BOOST_TEST(!down.why.message.empty());
      ++downs;
    }
    for (auto& frame : out.frames) {
      auto* connection = find(process, frame.route);
      if (connection == nullptr || connection->broken) continue;
      const auto header = decode_link_header(frame.header);
      BOOST_REQUIRE(header.has_value());
      auto& queue = connection->dialer == &process ? connection->there : connection->back;
      queue.push_back({*header, std::move(frame.payload)});
    }
    out = {};
  }

  void say(Process& process, LinkId link) {
    LinkOutput out;
    auto text = std::to_string(process.sent[link].size()) + " of " + std::to_string(link);
    if (process.links.send(link, text, now, out)) process.sent[link].push_back(text);
    act(process, out);
  }

  void receive(Connection& connection, bool there) {
    auto& queue = there ? connection.there : connection.back;
    auto& to = *(there ? connection.listener : connection.dialer);
    if (queue.empty() || !to.running) return;
    const auto packet = queue.front();
    queue.pop_front();
    LinkOutput out;
    const auto link =
        to.links.on_frame(there ? connection.listen_route : connection.dial_route, packet.header,
                          packet.payload, now, out);
    act(to, out);
    if (!link) return;
    BOOST_REQUIRE(to.up.contains(*link));  // never before it is up or after it is down
    to.delivered[*link].push_back(packet.payload);
    ++delivered;
  }

  /// Time passes; whoever runs works.
  void pass(std::uint64_t time) {
    now += time;
    for (std::size_t i = 0; i < connections.size(); ++i) {
      auto& each = *connections[i];
      if (each.broken) continue;
      if (each.there_dead) each.there.clear();
      if (each.back_dead) each.back.clear();
      for (auto n = random() % 4; n > 0; --n) receive(each, true);
      for (auto n = random() % 4; n > 0; --n) receive(each, false);
    }
    for (auto& process : processes) {
      if (!process->running || now < process->next_tick) continue;
      LinkOutput out;
      process->next_tick = process->links.tick(now, out);
      BOOST_REQUIRE(process->next_tick > now);
      act(*process, out);
      process->next_tick = now;  // whatever was done meanwhile may be due sooner
    }
  }

  void fault() {
    if (connections.empty()) return;
    auto& each = *connections.back();
    switch (random() % 7) {
      case 0: each.broken = true; break;
      case 1: (one_in(2) ? each.there_dead : each.back_dead) = true; break;
      case 2:
        if (!each.there.empty()) each.there.pop_front();
        break;
      case 3:
        if (!each.back.empty()) each.back.push_back(each.back.front());
        break;
      case 4: processes[random() % processes.size()]->running = false; break;
      default: {
        each.broken = true;
        LinkOutput out;
        each.listener->links.on_unreachable(each.listen_route, now, out);
        act(*each.listener, out);
      }
    }
  }

  /// What came is a beginning of what was sent in that session.
  void check() {
    for (auto& process : processes)
      for (const auto& [link, texts] : process->delivered) {
        const std::string session = texts.front().substr(texts.front().find(" of ") + 4);
        for (std::size_t i = 0; i < texts.size(); ++i)
          BOOST_REQUIRE_EQUAL(texts[i], std::to_string(i) + " of " + session);
      }
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(links)

BOOST_AUTO_TEST_CASE(sessions_are_gapless_over_a_terrible_network) {
  std::uint64_t delivered = 0, downs = 0;
  for (std::uint64_t seed = 1; seed <= terrible_networks; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Network network(seed);
      auto& b = network.start("b", 1);
      auto* a = &network.start("a", 1);
      network.listening = &b;
      std::uint64_t newest = 1;
      LinkOutput out;
      a->links.dial(0, network.now, out);
      network.act(*a, out);
      for (int i = 0; i < 600; ++i) {
        network.pass((1 + network.random() % 30) * ms);
        for (auto& process : network.processes) {
          if (!process->running) {
            if (network.one_in(20)) process->running = true;
            continue;
          }
          for (const auto link : std::set<LinkId>(process->up)) network.say(*process, link);
        }
        if (network.one_in(25)) network.fault();
        if (network.one_in(250)) {  // started anew; the old one may still be there
          a->running = network.one_in(2);
          a = &network.start("a", ++newest);
          a->links.dial(0, network.now, out);
          network.act(*a, out);
        }
      }
      // The network heals. Every process goes on, the zombies too.
      for (auto& process : network.processes) process->running = true;
      for (auto& each : network.connections) each->there_dead = each->back_dead = false;
      for (int i = 0; i < 400; ++i) network.pass(20 * ms);
      BOOST_TEST(a->up.size() == 1U);
      BOOST_TEST(b.up.size() == 1U);
      const auto link = *a->up.begin(), far = *b.up.begin();
      BOOST_TEST(b.peers[far].incarnation == newest);
      for (auto& process : network.processes)
        if (process.get() != a && process.get() != &b) BOOST_TEST(process->up.empty());
      const auto before = b.delivered[far].size();
      network.say(*a, link);
      for (int i = 0; i < 40; ++i) network.pass(10 * ms);
      BOOST_TEST(b.delivered[far].size() == before + 1);
      b.delivered.erase(far);
      network.check();
      delivered += network.delivered;
      downs += network.downs;
    }
  }
  // The faults did happen, and the rest went through.
  BOOST_TEST(downs > 10 * terrible_networks);
  BOOST_TEST(delivered > 250 * terrible_networks);
}

BOOST_AUTO_TEST_CASE(a_silent_peer_is_lost_after_the_time_that_is_stated) {
  Network network(1);
  auto& b = network.start("b", 1);
  auto& a = network.start("a", 1);
  network.listening = &b;
  LinkOutput out;
  a.links.dial(0, network.now, out);
  network.act(a, out);
  for (int i = 0; i < 10; ++i) network.pass(10 * ms);
  BOOST_REQUIRE_EQUAL(a.up.size(), 1);
  b.running = false;
  for (int i = 0; i < 79; ++i) network.pass(10 * ms);
  BOOST_TEST(a.up.size() == 1U);  // beats came until then
  for (int i = 0; i < 25; ++i) network.pass(10 * ms);
  BOOST_TEST(a.up.empty());
}

BOOST_AUTO_TEST_CASE(a_peer_that_does_not_keep_up_is_lost) {
  LinkConfig config;
  config.frames_max = 8;
  config.bytes_max = 1000;
  Links b(config, {"b", 1});
  LinkOutput to_a;
  std::uint64_t session = 0;
  const auto up = [&] {
    to_a = {};
    b.on_frame("in", {LinkKind::hello, 7, ++session, 0, 0}, "a", 5'000 * ms, to_a);
    BOOST_REQUIRE_EQUAL(to_a.ups.size(), 1);
    return to_a.ups.front().link;
  };
  auto link = up();
  for (int i = 0; i < 8; ++i) BOOST_TEST(b.send(link, "x", 5'000 * ms, to_a));
  BOOST_TEST(to_a.downs.empty());
  BOOST_TEST(!b.send(link, "x", 5'000 * ms, to_a));
  BOOST_REQUIRE_EQUAL(to_a.downs.size(), 1);
  BOOST_TEST((to_a.downs[0].why.code == ErrorCode::overloaded));
  link = up();
  BOOST_TEST(b.send(link, std::string(1000, 'x'), 5'000 * ms, to_a));
  BOOST_TEST(!b.send(link, "x", 5'000 * ms, to_a));
  BOOST_REQUIRE_EQUAL(to_a.downs.size(), 1);
}

BOOST_AUTO_TEST_CASE(attempts_back_off_and_say_why_they_failed) {
  Links a({}, {"a", 1});
  LinkOutput out;
  std::uint64_t now = 1000 * ms;
  a.dial(3, now, out);
  std::vector<std::uint64_t> pauses;
  for (int i = 0; i < 9; ++i) {
    BOOST_REQUIRE_EQUAL(out.connects.size(), 1);
    BOOST_TEST(out.connects[0].dial == 3U);
    const auto header = *decode_link_header(out.frames.back().header);
    BOOST_TEST((header.kind == LinkKind::hello));
    const auto route = out.connects[0].route;
    out = {};
    BOOST_TEST(!a.on_frame(route, {LinkKind::bye, 1, header.session, 0, 0}, "full", now, out));
    BOOST_REQUIRE_EQUAL(out.failures.size(), 1);
    BOOST_TEST(out.failures[0].why.message.find("full") != std::string::npos);
    out = {};
    const auto next = a.tick(now, out);
    BOOST_TEST(out.connects.empty());
    pauses.push_back((next - now) / ms);
    now = next;
    a.tick(now, out);
  }
  const std::vector<std::uint64_t> due = {50, 100, 200, 400, 800, 1600, 2000, 2000, 2000};
  BOOST_TEST(pauses == due, boost::test_tools::per_element());
}

// Found by the fuzzer link: a session came up with a node of no name; and one that said anything
// but its name was waited for as long as it went on.
BOOST_AUTO_TEST_CASE(a_dialed_node_says_its_name_first) {
  const auto answer = [](LinkKind kind, const std::string& payload) {
    Links a({}, {"a", 1});
    LinkOutput out;
    a.dial(0, 1000 * ms, out);
    const auto route = out.connects.at(0).route;
    const auto header = *decode_link_header(out.frames.at(0).header);
    out = {};
    BOOST_TEST(!a.on_frame(route, {kind, 1, header.session, 0, 0}, payload, 1000 * ms, out));
    BOOST_TEST(a.up_count() == out.ups.size());
    if (!out.failures.empty()) {
      BOOST_REQUIRE_EQUAL(out.frames.size(), 1);  // it is told
      BOOST_TEST((decode_link_header(out.frames[0].header)->kind == LinkKind::bye));
    }
    return out.failures.empty() ? std::string() : out.failures[0].why.message;
  };
  BOOST_TEST(answer(LinkKind::welcome, std::string(256, 'b')) == "");
  const std::string nameless = "the node dialed has no name of 1 to 256 bytes";
  BOOST_TEST(answer(LinkKind::welcome, "") == nameless);
  BOOST_TEST(answer(LinkKind::welcome, std::string(257, 'b')) == nameless);
  for (const auto kind : {LinkKind::beat, LinkKind::data})
    BOOST_TEST(answer(kind, "x") == "the node dialed spoke before its welcome");
}

BOOST_AUTO_TEST_CASE(a_zombie_is_shut_out) {
  Links b({}, {"b", 1});
  LinkOutput out;
  const auto now = 1000 * ms;
  b.on_frame("old", {LinkKind::hello, 5, 1, 0, 0}, "a", now, out);
  BOOST_REQUIRE_EQUAL(out.ups.size(), 1);
  b.on_frame("new", {LinkKind::hello, 6, 1, 0, 0}, "a", now, out);
  BOOST_REQUIRE_EQUAL(out.ups.size(), 2);
  BOOST_REQUIRE_EQUAL(out.downs.size(), 1);
  BOOST_TEST(out.downs[0].link == out.ups[0].link);
  out = {};
  BOOST_TEST(!b.on_frame("old", {LinkKind::data, 5, 1, 1, 0}, "x", now, out));
  BOOST_REQUIRE_EQUAL(out.frames.size(), 1);  // it is told
  BOOST_TEST((decode_link_header(out.frames[0].header)->kind == LinkKind::bye));
  out = {};
  b.on_frame("old again", {LinkKind::hello, 5, 2, 0, 0}, "a", now, out);
  BOOST_TEST(out.ups.empty());
  BOOST_REQUIRE_EQUAL(out.frames.size(), 1);
  BOOST_TEST(out.frames[0].payload.find("newer process") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(headers_that_are_none_are_refused) {
  const LinkHeader header{LinkKind::data, 1, 2, 3, 4};
  const auto bytes = encode(header);
  BOOST_TEST(bytes.size() == link_header_bytes);
  BOOST_TEST((*decode_link_header(bytes) == header));
  for (std::size_t size = 0; size < bytes.size(); ++size)
    BOOST_TEST((decode_link_header(bytes.substr(0, size)).error().code == ErrorCode::bad_request));
  for (const auto& [at, value, code] :
       {std::tuple{0, 'x', ErrorCode::bad_request}, {2, '\2', ErrorCode::unsupported},
        {3, '\0', ErrorCode::bad_request}, {3, '\6', ErrorCode::bad_request}}) {
    auto bad = bytes;
    bad[at] = value;
    BOOST_TEST((decode_link_header(bad).error().code == code));
  }
}

BOOST_AUTO_TEST_SUITE_END()
