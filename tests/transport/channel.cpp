// Shows that a client gets its stream whole over a channel that is beyond terrible. Session and
// StreamState on one side, ClientStream on the other, and between them a simulated network that a
// seed drives: delays, connections that break with all that is in flight and come back under a new
// peer name, messages of an old connection that arrive after those of a new one, duplicates,
// messages lost on the way to subscribers. Whatever the seed: one run on the engine, every token
// once and in order, the text likewise, one terminal, and an acknowledged stream is dropped.

#include <boost/test/unit_test.hpp>
#include <deque>
#include <map>
#include <memory>
#include <random>

#include "transport/client_state.hpp"
#include "transport/session.hpp"
#include "transport/stream.hpp"

using namespace sluice;
using namespace sluice::transport;

namespace {

constexpr std::uint64_t ms = 1'000'000;

struct Random {
  std::mt19937_64 engine;
  std::uint64_t below(std::uint64_t n) { return engine() % n; }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
};

/// What the model would say, told by the seed: per choice the tokens, and the text each releases.
struct Script {
  struct Step {
    std::uint32_t choice = 0;
    std::vector<Token> tokens;
    std::string text;
  };
  std::vector<Step> steps;
  std::vector<std::vector<Token>> tokens;
  std::vector<std::string> text;

  Script(Random& random, std::uint32_t choices) : tokens(choices), text(choices) {
    for (auto n = random.below(300); n > 0; --n) {
      Step step{static_cast<std::uint32_t>(random.below(choices)), {}, {}};
      for (auto k = 1 + random.below(4); k > 0; --k)
        step.tokens.push_back(static_cast<Token>(random.below(50000)));
      if (!random.one_in(3)) step.text = "<" + std::to_string(step.tokens.back()) + ">";
      add(step);
    }
    for (std::uint32_t i = 0; i < choices; ++i)
      if (random.one_in(2)) add({i, {}, "tail" + std::to_string(i)});
  }
  void add(const Step& step) {
    auto& all = tokens[step.choice];
    all.insert(all.end(), step.tokens.begin(), step.tokens.end());
    text[step.choice] += step.text;
    steps.push_back(step);
  }
};

/// A client's program: a ClientStream and what it was handed.
struct Receiver {
  std::unique_ptr<ClientStream> stream;
  std::vector<std::uint32_t> from;
  std::map<std::uint32_t, std::vector<Token>> tokens;
  std::map<std::uint32_t, std::string> text;
  int accepted = 0;
  int terminals = 0;
  bool failed = false;

  void take(const std::vector<ClientEvent>& events) {
    for (const ClientEvent& event : events) {
      BOOST_REQUIRE_EQUAL(terminals, 0);  // nothing follows a terminal
      accepted += event.accepted.has_value();
      terminals += event.done.has_value() || event.failed.has_value();
      if (event.failed) failed = true;
      if (event.failed) BOOST_TEST_MESSAGE(event.failed->error.message);
      auto& held = tokens[event.choice];
      held.insert(held.end(), event.tokens.begin(), event.tokens.end());
      text[event.choice] += event.text;
    }
  }
};

struct Packet {
  std::uint64_t at_ns;
  Message message;
  std::size_t client;
  Peer peer;
};

struct Terror {
  std::uint64_t delay_ns_max = 20 * ms;
  std::uint64_t break_one_in = 0;      // of the milliseconds of a connection
  std::uint64_t duplicate_one_in = 0;  // of the messages
  std::uint64_t swap_one_in = 0;       // of the messages: late, behind its successors
  std::uint64_t drop_one_in = 0;       // of the messages to subscribers
};

class World {
 public:
  World(std::uint64_t seed, std::uint32_t choices, Terror terror, std::uint32_t window)
      : random_{std::mt19937_64(seed)}, terror_(terror), script_(random_, choices) {
    SessionConfig session;
    session.welcome.window_tokens = window;
    session_ = std::make_unique<Session>(session);
    stream_config_.window_tokens = window;
    stream_config_.chunk_tokens_max = window / 2 + 1;
    submit_.stream = {1};
    submit_.owner = {2};
    submit_.epoch = random_.below(3);
    submit_.n = choices;
    submit_.prompt = "hello";
    add_client(std::make_unique<ClientStream>(submit_, window), 0);
  }

  void add_client(std::unique_ptr<ClientStream> stream, std::uint32_t from,
                  bool subscribed = false) {
    clients_.push_back({});
    clients_.back().receiver.stream = std::move(stream);
    clients_.back().receiver.from.assign(script_.tokens.size(), 0);
    clients_.back().receiver.from[0] = from;
    clients_.back().subscribed = subscribed;
  }

  /// Until everything is over; the network breaks things for the first minute.
  void run() {
    for (now_ns_ = 0; now_ns_ < 120'000 * ms && !over(); now_ns_ += ms) {
      const bool calm = now_ns_ > 60'000 * ms;
      for (std::size_t i = 0; i < clients_.size(); ++i) connections(i, calm);
      deliver(to_server_, [&](Packet& packet) { serve(packet); });
      deliver(to_clients_, [&](Packet& packet) { hear(packet); });
      generate();
      if (now_ns_ % (100 * ms) == 0) {
        tick_server();
        for (std::size_t i = 0; i < clients_.size(); ++i) {
          std::vector<Message> send;
          std::vector<ClientEvent> news;
          clients_[i].receiver.stream->tick(now_ns_, send, news);
          BOOST_CHECK(news.empty());  // the node is never away for so long
          post(i, send);
        }
      }
    }
  }

  void check() {
    BOOST_CHECK_EQUAL(starts_, 1);
    BOOST_CHECK(expired_);
    BOOST_CHECK_EQUAL(session_->open_streams(), 0U);
    for (std::size_t i = 0; i < clients_.size(); ++i) {
      const Receiver& got = clients_[i].receiver;
      BOOST_TEST_CONTEXT("client " << i) {
        BOOST_CHECK_EQUAL(got.terminals, 1);
        BOOST_CHECK_EQUAL(got.accepted, i == 0 ? 1 : 0);
        BOOST_REQUIRE(!got.failed);
        for (std::uint32_t choice = 0; choice < script_.tokens.size(); ++choice) {
          const auto& all = script_.tokens[choice];
          const std::vector<Token> expected(all.begin() + got.from[choice], all.end());
          const auto held = got.tokens.find(choice);
          const bool same = held == got.tokens.end() ? expected.empty() : held->second == expected;
          BOOST_CHECK_MESSAGE(same, "tokens of choice " << choice);
          if (got.from[choice] != 0) continue;
          const auto text = got.text.find(choice);
          BOOST_CHECK_EQUAL(text == got.text.end() ? "" : text->second, script_.text[choice]);
        }
      }
    }
  }

  const Submit& submit() const { return submit_; }
  const Script& script() const { return script_; }
  Random& random() { return random_; }
  std::size_t reconnections() const { return reconnections_; }

 private:
  struct Client {
    Receiver receiver;
    bool subscribed = false;
    Peer peer;  // empty while not connected
    std::uint64_t connect_at_ns = 0;
  };

  bool over() const {
    for (const Client& client : clients_)
      if (client.receiver.terminals == 0) return false;
    return expired_;
  }

  void connections(std::size_t index, bool calm) {
    Client& client = clients_[index];
    // A reader comes when the stream is known; before, it would be told `not_found`.
    if (index != 0 && starts_ == 0) return;
    if (client.peer.empty() && now_ns_ >= client.connect_at_ns) {
      client.peer = "peer" + std::to_string(++reconnections_);
      alive_[client.peer] = index;
      std::vector<Message> send;
      client.receiver.stream->on_connected(now_ns_, send);
      post(index, send);
    } else if (!client.peer.empty() && !calm && terror_.break_one_in != 0 &&
               random_.one_in(terror_.break_one_in)) {
      break_connection(index);
    }
  }

  void break_connection(std::size_t index) {
    Client& client = clients_[index];
    // Some of what was under way to the server arrives all the same, maybe much later.
    const bool all_lost = random_.one_in(2);
    std::erase_if(to_server_, [&](const Packet& p) {
      return p.peer == client.peer && (all_lost || random_.one_in(2));
    });
    if (!random_.one_in(4))
      std::erase_if(to_clients_, [&](const Packet& p) { return p.peer == client.peer; });
    for (Packet& packet : to_server_)
      if (packet.peer == client.peer && random_.one_in(2)) packet.at_ns += 100 * ms;
    alive_.erase(client.peer);
    client.peer.clear();
    client.connect_at_ns = now_ns_ + random_.below(2000) * ms;
  }

  std::uint64_t arrival(std::deque<Packet>& queue, const Peer& peer) {
    std::uint64_t at_ns = now_ns_ + random_.below(terror_.delay_ns_max + 1);
    if (terror_.swap_one_in != 0 && random_.one_in(terror_.swap_one_in)) return at_ns + 50 * ms;
    for (const Packet& packet : queue)  // in order within a connection
      if (packet.peer == peer) at_ns = std::max(at_ns, packet.at_ns);
    return at_ns;
  }

  void enqueue(std::deque<Packet>& queue, std::size_t client, const Peer& peer,
               const Message& message) {
    const std::uint64_t copies =
        terror_.duplicate_one_in != 0 && random_.one_in(terror_.duplicate_one_in) ? 2 : 1;
    for (std::uint64_t i = 0; i < copies; ++i)
      queue.push_back({arrival(queue, peer), message, client, peer});
  }

  void post(std::size_t client, const std::vector<Message>& send) {
    if (clients_[client].peer.empty()) return;
    for (const Message& message : send)
      enqueue(to_server_, client, clients_[client].peer, message);
  }

  template <class Take>
  void deliver(std::deque<Packet>& queue, Take take) {
    std::deque<Packet> due;
    for (std::size_t i = 0; i < queue.size();) {
      if (queue[i].at_ns <= now_ns_) {
        due.push_back(std::move(queue[i]));
        queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
    std::stable_sort(due.begin(), due.end(),
                     [](const Packet& a, const Packet& b) { return a.at_ns < b.at_ns; });
    for (Packet& packet : due) take(packet);
  }

  void serve(Packet& packet) {
    act(session_->on_message(packet.peer, std::move(packet.message), now_ns_));
  }

  void act(std::vector<SessionAction> actions) {
    for (SessionAction& action : actions) {
      if (const auto* reply = std::get_if<Reply>(&action)) {
        send(reply->peer, reply->message);
      } else if (auto* start = std::get_if<Start>(&action)) {
        ++starts_;
        owner_ = start->peer;
        accept_at_ns_ = now_ns_ + random_.below(3000) * ms;
      } else if (const auto* follow = std::get_if<Follow>(&action)) {
        keep(*follow);
      } else {
        BOOST_ERROR("nobody asked for this");
      }
    }
  }

  void keep(const Follow& follow) {
    std::vector<Delivery> out;
    const auto* attach = std::get_if<Attach>(&follow.message);
    if (!kept_ && attach != nullptr)
      send(follow.peer, Failed{attach->stream, submit_.epoch, {ErrorCode::gone, "dropped", 0}});
    if (!kept_) return;
    if (attach != nullptr)
      kept_->on_attach(follow.peer, *attach, follow.owner, now_ns_, out);
    else
      kept_->on_ack(follow.peer, std::get<Ack>(follow.message), follow.owner, now_ns_, out);
    hand_out(out);
  }

  void hand_out(const std::vector<Delivery>& out) {
    for (const Delivery& delivery : out) {
      const auto message = decode(*delivery.frame, Limits{});
      BOOST_REQUIRE(message);
      if (delivery.peer) {
        send(*delivery.peer, *message);
        continue;
      }
      for (std::size_t i = 0; i < clients_.size(); ++i)
        if (clients_[i].subscribed && !clients_[i].peer.empty() &&
            !(terror_.drop_one_in != 0 && random_.one_in(terror_.drop_one_in)))
          enqueue(to_clients_, i, "publisher of " + clients_[i].peer, *message);
    }
  }

  /// As the endpoint does it: a send to a connection that is gone is noticed.
  void send(const Peer& peer, const Message& message) {
    const auto found = alive_.find(peer);
    if (found != alive_.end())
      enqueue(to_clients_, found->second, peer, message);
    else if (kept_)
      kept_->on_lost(peer, now_ns_);
  }

  void hear(Packet& packet) {
    std::vector<Message> send;
    std::vector<ClientEvent> events;
    Client& client = clients_[packet.client];
    client.receiver.stream->on_message(packet.message, now_ns_, send, events);
    client.receiver.take(events);
    post(packet.client, send);
  }

  void generate() {
    std::vector<Delivery> out;
    if (starts_ == 1 && !kept_ && !expired_ && now_ns_ >= accept_at_ns_) {
      const engine::ChainHash start = {7};
      kept_ = std::make_unique<StreamState>(
          submit_.stream, submit_.epoch, owner_,
          std::vector<engine::ChainHash>(script_.tokens.size(), start), stream_config_, now_ns_);
      const Accepted accepted{submit_.stream, submit_.epoch, "numerics", 3, start};
      send(owner_, accepted);
      act(session_->on_accepted(accepted, now_ns_));
    } else if (kept_ && !finished_ && random_.one_in(20)) {
      if (next_step_ < script_.steps.size()) {
        const Script::Step& step = script_.steps[next_step_++];
        kept_->append(step.choice, step.tokens, step.text, {}, now_ns_, out);
      } else {
        finished_ = true;
        Done done{submit_.stream, submit_.epoch, {}, {}, {}, {}};
        done.finish.assign(script_.tokens.size(), engine::FinishReason::stop);
        kept_->finish(done, now_ns_, out);
        session_->on_finished(submit_.stream, submit_.epoch, now_ns_);
      }
    }
    hand_out(out);
  }

  void tick_server() {
    if (!kept_) return;
    std::vector<Delivery> out;
    const auto verdict = kept_->tick(now_ns_, out);
    BOOST_REQUIRE(!verdict.abandoned || !finished_);
    // Readers may lag behind the owner's last ack; this keeper waits for them.
    bool readers_done = true;
    for (const Client& client : clients_) readers_done &= client.receiver.terminals > 0;
    if ((verdict.expired || kept_->settled()) && readers_done) {
      expired_ = true;
      kept_.reset();
    }
    if (kept_) hand_out(out);
  }

  Random random_;
  Terror terror_;
  Script script_;
  StreamConfig stream_config_;
  Submit submit_;
  std::unique_ptr<Session> session_;
  std::unique_ptr<StreamState> kept_;
  std::deque<Client> clients_;
  std::map<Peer, std::size_t> alive_;
  std::deque<Packet> to_server_;
  std::deque<Packet> to_clients_;
  Peer owner_;
  std::uint64_t now_ns_ = 0;
  std::uint64_t accept_at_ns_ = 0;
  std::size_t next_step_ = 0;
  std::size_t reconnections_ = 0;
  int starts_ = 0;
  bool finished_ = false;
  bool expired_ = false;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(channel)

BOOST_AUTO_TEST_CASE(a_good_channel) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      World world(seed, 1, {}, 1024);
      world.run();
      world.check();
      BOOST_CHECK_EQUAL(world.reconnections(), 1U);
    }
  }
}

BOOST_AUTO_TEST_CASE(beyond_terrible) {
  std::size_t reconnections = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Random with{std::mt19937_64(seed ^ 0x5eed)};
      Terror terror;
      terror.delay_ns_max = with.below(200) * ms;
      terror.break_one_in = 200 + with.below(4000);
      terror.duplicate_one_in = 2 + with.below(20);
      terror.swap_one_in = with.one_in(2) ? 2 + with.below(20) : 0;
      terror.drop_one_in = 1 + with.below(10);
      const auto window = static_cast<std::uint32_t>(1 + with.below(100));
      World world(seed, static_cast<std::uint32_t>(1 + with.below(3)), terror, window);
      const auto& tokens = world.script().tokens[0];
      const auto from = static_cast<std::uint32_t>(with.below(tokens.size() + 1));
      const StreamId id = world.submit().stream;
      world.add_client(std::make_unique<ClientStream>(id, 0, false, window), 0);
      world.add_client(std::make_unique<ClientStream>(id, 0, true, window), 0, true);
      world.add_client(std::make_unique<ClientStream>(id, from, false, window), from);
      world.run();
      world.check();
      reconnections += world.reconnections();
    }
  }
  BOOST_CHECK_GT(reconnections, 4000U);
}

BOOST_AUTO_TEST_SUITE_END()
