#include "tests/simulate/world.hpp"

#include <fmt/ranges.h>

#include <algorithm>

namespace sluice::simulate {

namespace {

constexpr std::uint64_t second = 1000 * ms;

/// Every promise allows for some waiting: patience, grace, retention, doubled questions.
constexpr std::uint64_t all_ends_within_ns = 300 * second;

/// Where a finished stream's log is more than may be kept, its owner gets a window of each choice,
/// finds it gone and submits it again: one round.
constexpr std::uint64_t round_ns = 6 * second;
constexpr std::uint32_t log_tokens_max = 3 * 140;
constexpr std::size_t small_retention_bytes = 4'000;

/// A connection whose other end is silent for so long is given up.
constexpr std::uint64_t heartbeat_ns = 6 * second;

constexpr std::uint64_t tick_ns = 500 * ms;

struct Describe {
  std::string operator()(const transport::Submit& m) const {
    return fmt::format("submit epoch {} after {} tokens, {} at most, stop at '{}' from {}, '{}'",
                       m.epoch, m.resume_tokens.empty() ? 0 : m.resume_tokens[0].size(),
                       m.max_tokens,
                       std::string(m.sampling.stop_tokens.begin(), m.sampling.stop_tokens.end()),
                       m.sampling.min_tokens, fmt::join(m.stops, "', '"));
  }
  std::string operator()(const transport::Accepted& m) const {
    return fmt::format("accepted epoch {}", m.epoch);
  }
  std::string operator()(const transport::Chunk& m) const {
    return fmt::format("chunk epoch {} from {}: {} tokens, text at {}: '{}'", m.epoch,
                       m.part.first_index, m.part.tokens.size(), m.part.text_offset, m.part.text);
  }
  std::string operator()(const transport::Done& m) const {
    return fmt::format("done epoch {}: {} after {} tokens", m.epoch,
                       transport::to_string(m.finish.at(0)), m.tokens.at(0));
  }
  std::string operator()(const transport::Failed& m) const {
    return fmt::format("error epoch {}: {} ({})", m.epoch, to_string(m.error.code),
                       m.error.message);
  }
  std::string operator()(const transport::Cancel& m) const {
    return fmt::format("cancel epoch {}", m.epoch);
  }
  std::string operator()(const transport::Attach& m) const {
    return fmt::format("attach from {}{}", m.index, m.live ? "" : ", not live");
  }
  std::string operator()(const transport::Ack& m) const {
    return fmt::format("ack {}{}", m.index, m.terminal ? ", terminal" : "");
  }
  std::string operator()(const auto&) const { return "hello or welcome"; }
};

}  // namespace

World::World(std::uint64_t seed, bool fleets, Tally& tally, bool narrate)
    : random_{std::mt19937_64(seed)}, fleets_(fleets), tally_(tally), narrate_(narrate) {
  calm_ns_ = random_.between(5, 40) * second;
  delay_max_ns_ = random_.one_in(3) ? 500 * ms : random_.between(1, 50) * ms;
  step_max_ns_ = random_.between(1, 60) * ms;
  const auto sometimes = [&](std::uint32_t low, std::uint32_t high) {
    return random_.one_in(3) ? 0U : random_.between(low, high);
  };
  break_one_in_ = sometimes(2, 30);
  kill_one_in_ = sometimes(5, 60);
  cut_one_in_ = sometimes(5, 60);
  lose_one_in_ = random_.one_in(2) ? random_.between(2, 40) : 0;
  crash_one_in_ = sometimes(10, 100);
  drop_one_in_ = random_.between(2, 20);

  hosts_.resize(random_.between(1, fleets_ ? 2 : 3));
  for (Host& host : hosts_) host.shape = random_shape();
  for (std::size_t i = 0; i < hosts_.size(); ++i) start_host(i);
  for (std::uint32_t owners = random_.between(3, 14); owners > 0; --owners)
    at(now_ns_ + random_.below(calm_ns_), [this] { add_owner(); });
  for (std::uint32_t readers = random_.between(0, 6); readers > 0; --readers)
    at(now_ns_ + random_.below(calm_ns_), [this] { add_follower(); });
  at(now_ns_ + second, [this] { harm(); });
}

NodeShape World::random_shape() {
  NodeShape shape;
  engine::SchedulerConfig& scheduler = shape.scheduler;
  scheduler.slots = random_.between(1, 6);
  scheduler.block_tokens = 1U << random_.between(2, 4);
  scheduler.context_tokens = 192;
  scheduler.blocks = random_.between(192, 400) / scheduler.block_tokens;
  scheduler.rows_max = random_.between(4, 64);
  scheduler.queue_max = random_.between(2, 20);
  scheduler.steps_in_flight = random_.between(1, 3);
  scheduler.paths_equal = random_.one_in(2);
  if (!random_.one_in(4)) scheduler.prefix_root = engine::BlockHash{};
  // One window for all: a client is told it once.
  shape.stream.window_tokens = hosts_.front().shape.stream.window_tokens != 1024
                                   ? hosts_.front().shape.stream.window_tokens
                                   : random_.between(1, 100);
  shape.stream.chunk_tokens_max = random_.between(1, 64);
  shape.stream.retention_ns = random_.between(5, 60) * second;
  shape.stream.retention_bytes = random_.one_in(3) ? small_retention_bytes : 64'000'000;
  shape.stream.grace_ns = 5 * second;
  if (random_.one_in(6)) shape.step_fails_one_in = random_.between(20, 200);
  return shape;
}

// Texts without letters, so that no stop token or string is part of one.
const engine::Constraint constraints[] = {
    {engine::Constraint::Kind::regex, "[0-9]{3,90}"},
    {engine::Constraint::Kind::regex, "(12|34|5)*"},
    {engine::Constraint::Kind::json_schema, R"({"items": {"enum": [1, [2], 33]}})"},
};

transport::Submit World::random_submit() {
  transport::Submit submit;
  for (std::uint8_t& byte : submit.stream) byte = static_cast<std::uint8_t>(random_.below(256));
  for (std::uint8_t& byte : submit.owner) byte = static_cast<std::uint8_t>(random_.below(256));
  submit.epoch = random_.below(3);
  submit.sampling.seed = random_.below(1000);
  std::string prompt(random_.between(1, 40), 'x');
  for (char& c : prompt) c = static_cast<char>('a' + random_.below(26));
  if (random_.one_in(2)) prompt = std::string(random_.between(1, 40), 'p') + prompt.substr(0, 8);
  submit.prompt = prompt;
  submit.max_tokens = random_.between(1, 140);
  submit.ignore_eos = true;
  if (random_.one_in(4)) submit.sampling.stop_tokens = {'a' + static_cast<Token>(random_.below(8))};
  if (random_.one_in(4)) submit.sampling.min_tokens = random_.between(0, 6);
  submit.sampling.min_tokens = std::min(submit.sampling.min_tokens, submit.max_tokens);
  for (std::uint64_t n = random_.below(3); n > 0; --n) {
    std::string stop;
    for (std::uint32_t i = random_.between(2, 4); i > 0; --i)
      stop += static_cast<char>('a' + random_.below(8));
    submit.stops.push_back(stop);
  }
  if (random_.one_in(5)) submit.constraint = constraints[random_.below(std::size(constraints))];
  if (random_.one_in(5)) submit.n = random_.between(2, 3);
  if (random_.one_in(2)) submit.tenant = std::string(random_.between(1, 3), 't');
  submit.priority = static_cast<std::int32_t>(random_.below(3)) - 1;
  if (random_.one_in(8)) submit.deadline_ms = random_.between(1, 20'000);
  return submit;
}

std::uint64_t World::all_end_within_ns() const {
  const bool rounds = std::ranges::any_of(hosts_, [](const Host& host) {
    return host.shape.stream.retention_bytes == small_retention_bytes;
  });
  const auto window = hosts_.front().shape.stream.window_tokens;
  return all_ends_within_ns + (rounds ? log_tokens_max / window * round_ns : 0);
}

std::uint64_t World::delay_ns() { return 10'000 + random_.below(delay_max_ns_); }

void World::at(std::uint64_t at_ns, std::function<void()> happen) {
  queue_.push({at_ns, events_++, std::move(happen)});
}

void World::start_host(std::size_t index) {
  Host& host = hosts_[index];
  const std::uint64_t incarnation = ++host.incarnation;
  Wire wire;
  wire.send = [this](const transport::Peer& peer, const std::string& frame) {
    const auto found = peers_.find(peer);
    if (found == peers_.end() || !connections_[found->second].open) return false;
    const std::size_t number = found->second;
    Connection& connection = connections_[number];
    const Host& from = hosts_[connection.host];
    const std::uint64_t due =
        std::max({now_ns_ + delay_ns(), from.cut_off_until_ns, connection.last_down_ns});
    connection.last_down_ns = due;
    at(due, [this, number, frame] { hear(number, frame); });
    return true;
  };
  wire.publish = [this, index](const transport::StreamId& stream, const std::string& frame) {
    publish(index, stream, frame);
  };
  tell("started: node", index);
  if (fleets_)
    host.node = std::make_unique<Fleet>(host.shape, random_.engine(), now_ns_, calm_ns_,
                                        std::move(wire), tally_, narrate_);
  else
    host.node = std::make_unique<Node>(host.shape, random_.engine(), now_ns_, std::move(wire));
  host.step_due = false;
  host.cut_off_until_ns = 0;
  // A node's clock ticks by itself, too.
  const auto beat = [this, index, incarnation](const auto& again) -> void {
    if (hosts_[index].incarnation != incarnation || hosts_[index].node == nullptr) return;
    settle(index);
    after(50 * ms, [again] { again(again); });
  };
  beat(beat);
}

/// Runs a host's actors, now and then not to the end, so that news of different age meet.
void World::settle(std::size_t index) {
  Host& host = hosts_[index];
  if (host.node == nullptr) return;
  host.node->advance(now_ns_);
  host.node->run(calm() || !random_.one_in(4) ? SIZE_MAX : random_.below(12));
  drive_steps(index);
}

void World::drive_steps(std::size_t index) {
  Host& host = hosts_[index];
  if (host.step_due || !host.node->busy()) return;
  host.step_due = true;
  const std::uint64_t incarnation = host.incarnation;
  after(random_.below(step_max_ns_) + 1, [this, index, incarnation] {
    Host& same = hosts_[index];
    if (same.incarnation != incarnation || same.node == nullptr) return;
    same.step_due = false;
    if (same.node->busy()) same.node->complete_step();
    settle(index);
  });
}

void World::kill_host(std::size_t index) {
  Host& host = hosts_[index];
  if (host.node == nullptr) return;
  tell("killed: node", index);
  ++tally_.counts["nodes killed"];
  steps_failed_ = steps_failed_ || host.node->steps_failed();
  devices_lost_ += host.node->executors_lost();
  host.node.reset();
  ++host.incarnation;
  for (std::size_t i = 0; i < connections_.size(); ++i)
    if (connections_[i].host == index && connections_[i].open) {
      connections_[i].up_cut_ns = 0;
      lose_connection(i);
    }
  after(random_.between(50, 5000) * ms, [this, index] { start_host(index); });
}

void World::cut_off(std::size_t index) {
  Host& host = hosts_[index];
  if (host.node == nullptr || host.cut_off_until_ns > now_ns_) return;
  tell("cut off: node", index);
  ++tally_.counts["partitions"];
  const std::uint64_t time = random_.between(50, 15'000) * ms;
  host.cut_off_until_ns = now_ns_ + time;
  if (time < heartbeat_ns) return;
  after(heartbeat_ns, [this, index, incarnation = host.incarnation] {
    if (hosts_[index].incarnation != incarnation) return;
    for (std::size_t i = 0; i < connections_.size(); ++i)
      if (connections_[i].host == index && connections_[i].open) lose_connection(i);
  });
}

void World::add_owner() {
  ++tally_.counts["requests"];
  const transport::Submit submit = random_submit();
  const NodeShape& shape = hosts_.front().shape;
  Place& place = places_.emplace_back();
  place.client =
      std::make_unique<Client>(submit, expect(submit, shape.scheduler.context_tokens), shape);
  place.client->began_ns = now_ns_;
  place.host = random_.below(hosts_.size());
  const std::size_t index = places_.size() - 1;
  connect(index);
  tick(index);
  if (random_.one_in(10))
    after(random_.below(5 * second), [this, index] {
      std::vector<transport::Message> send;
      if (places_[index].client->over()) return;
      places_[index].client->cancel(send);
      say(index, std::move(send));
    });
}

/// Comes to somebody's stream, where it is now.
void World::add_follower() {
  if (places_.empty()) return;
  const std::size_t chosen = random_.below(places_.size());
  if (places_[chosen].client->role() != Role::owner) return;
  const Client& owner = *places_[chosen].client;
  const Role role = random_.one_in(2) ? Role::reader : Role::subscriber;
  const auto from = static_cast<std::uint32_t>(
      role == Role::subscriber || random_.one_in(2) ? 0 : random_.below(owner.first_tokens() + 1));
  Place place;
  place.client = std::make_unique<Client>(owner, role, from);
  place.client->began_ns = now_ns_;
  place.host = places_[chosen].host;
  places_.push_back(std::move(place));
  connect(places_.size() - 1);
  tick(places_.size() - 1);
}

/// One address leads to all hosts; mostly to the one that it led to before.
void World::connect(std::size_t index) {
  Place& place = places_[index];
  if (place.connection || place.client->over()) return;
  if (random_.one_in(4)) place.host = random_.below(hosts_.size());
  Host& host = hosts_[place.host];
  if (host.node == nullptr || host.cut_off_until_ns > now_ns_) {
    place.host = random_.below(hosts_.size());
    return after(random_.between(10, 1000) * ms, [this, index] { connect(index); });
  }
  Connection connection;
  connection.client = index;
  connection.host = place.host;
  connection.incarnation = host.incarnation;
  place.connection = connections_.size();
  peers_["peer" + std::to_string(connections_.size())] = connections_.size();
  connections_.push_back(connection);
  tell(fmt::format("connected to node {}: client", place.host), index);
  std::vector<transport::Message> send;
  place.client->connected(now_ns_, send);
  say(index, std::move(send));
}

void World::lose_connection(std::size_t number) {
  Connection& connection = connections_[number];
  connection.open = false;
  // Of what is under way a first part arrives all the same, maybe behind what a new one brings.
  connection.up_cut_ns = std::min(connection.up_cut_ns, now_ns_ + random_.below(delay_max_ns_));
  connection.down_cut = true;
  Place& place = places_[connection.client];
  if (place.connection != number) return;
  tell("lost its connection: client", connection.client);
  ++tally_.counts["connections lost"];
  place.connection.reset();
  place.client->disconnected(connection.host, now_ns_);
  const std::size_t index = connection.client;
  after(random_.one_in(6) ? random_.between(1, 12) * second : random_.below(500 * ms),
        [this, index] { connect(index); });
}

void World::tick(std::size_t index) {
  Place& place = places_[index];
  std::vector<transport::Message> send;
  place.client->tick(now_ns_, send);
  say(index, std::move(send));
  after(tick_ns, [this, index] {
    if (!places_[index].client->over()) tick(index);
  });
}

void World::say(std::size_t index, std::vector<transport::Message> messages) {
  const auto number = places_[index].connection;
  if (!number) return;
  Connection& connection = connections_[*number];
  for (const transport::Message& message : messages) {
    const std::uint64_t due = std::max(
        {now_ns_ + delay_ns(), hosts_[connection.host].cut_off_until_ns, connection.last_up_ns});
    connection.last_up_ns = due;
    const bool follows = std::holds_alternative<transport::Attach>(message);
    at(due, [this, number = *number, follows, frame = transport::encode(message)] {
      const Connection& from = connections_[number];
      Host& host = hosts_[from.host];
      if (host.node == nullptr || host.incarnation != from.incarnation || now_ns_ > from.up_cut_ns)
        return;
      tell(fmt::format("node {} hears client", from.host), from.client, frame);
      if (follows && places_[from.client].connection == number)
        places_[from.client].client->followed(from.host, now_ns_);
      host.node->receive("peer" + std::to_string(number), frame);
      settle(from.host);
    });
  }
}

void World::hear(std::size_t number, const std::string& frame) {
  const Connection& connection = connections_[number];
  if (connection.down_cut) return;
  Place& place = places_[connection.client];
  tell("heard by client", connection.client, frame);
  std::vector<transport::Message> send;
  place.client->hear(connection.host, frame, now_ns_, send);
  trace_ = engine::test::mix(trace_, now_ns_);
  for (const char c : frame) trace_ = engine::test::mix(trace_, static_cast<unsigned char>(c));
  say(connection.client, std::move(send));
}

/// Each subscriber has a connection to the publisher of the node that it talks to; what it is too
/// slow for is lost.
void World::publish(std::size_t host, const transport::StreamId& stream, const std::string& frame) {
  for (const Place& place : places_) {
    if (place.client->role() != Role::subscriber || place.client->stream() != stream) continue;
    if (!place.connection || place.host != host || random_.one_in(drop_one_in_)) continue;
    at(now_ns_ + delay_ns(), [this, number = *place.connection, frame] { hear(number, frame); });
  }
}

void World::tell(std::string_view what, std::size_t about, std::string_view frame) const {
  if (!narrate_) return;
  const auto message = frame.empty()
                           ? std::string()
                           : std::visit(Describe(), *transport::decode(frame, transport::Limits()));
  fmt::print("{:10.3f} s  {} {} {}\n", static_cast<double>(now_ns_) / 1e9, what, about, message);
}

/// Each second's misfortunes, until it is calm.
void World::harm() {
  if (calm()) return;
  const auto strikes = [&](std::uint32_t one_in) { return one_in != 0 && random_.one_in(one_in); };
  for (std::size_t i = 0; i < hosts_.size(); ++i) {
    if (strikes(kill_one_in_)) kill_host(i);
    if (strikes(cut_one_in_)) cut_off(i);
    if (hosts_[i].node != nullptr && strikes(lose_one_in_)) {
      tell("lost its device: node", i);
      ++tally_.counts["devices lost"];
      ++devices_lost_;
      hosts_[i].node->lose_device();
    }
  }
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const auto connection = places_[i].connection;
    if (connection && strikes(break_one_in_)) lose_connection(*connection);
    if (!places_[i].client->over() && strikes(crash_one_in_)) {
      tell("crashed: client", i);
      ++tally_.counts["clients crashed"];
      if (places_[i].connection) lose_connection(*places_[i].connection);
      places_[i].client->restart();
    }
  }
  after(second, [this] { harm(); });
}

void World::run() {
  const auto all_over = [&] {
    return calm() && std::ranges::all_of(places_, [](const Place& p) { return p.client->over(); });
  };
  std::uint64_t end_ns = 0;  // when what the last stream left must be gone
  while (end_ns == 0 || now_ns_ < end_ns) {
    if (queue_.empty()) throw Violation("nothing happens any more");
    const Event event = queue_.top();
    queue_.pop();
    now_ns_ = event.at_ns;
    event.happen();
    if (end_ns == 0 && all_over()) end_ns = now_ns_ + 70 * second;
    if (end_ns == 0 && now_ns_ > calm_ns_ + all_end_within_ns()) break;
  }
  for (const Host& host : hosts_) {
    if (host.node == nullptr) continue;
    steps_failed_ = steps_failed_ || host.node->steps_failed();
    devices_lost_ += host.node->executors_lost();
  }
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Client& client = *places_[i].client;
    tell("judged: client", i);
    client.judge(steps_failed_, devices_lost_);
    const std::string who = client.role() == Role::owner ? "" : "follower ";
    ++tally_.counts[who + "ended with " + client.ending()];
    tally_.counts["streams resumed elsewhere"] += client.resumptions();
    tally_.counts["tokens"] += client.tokens();
    if (client.role() == Role::owner)
      tally_.request_hours += static_cast<double>(client.ended_ns - client.began_ns) / 3.6e12;
  }
  for (Host& host : hosts_)
    if (host.node != nullptr) host.node->check_idle();
}

}  // namespace sluice::simulate
