#include "tests/simulate/fleet.hpp"

#include <fmt/format.h>

#include "tests/simulate/process.hpp"

namespace sluice::simulate {
namespace {

constexpr std::uint64_t second = 1000 * ms;

/// Roles of the processes; every process dials those before it. The first is the front. An engine
/// x2 leads a group of two: further executors are its other ranks, or spares; all are, where it is
/// no executor itself.
const std::vector<std::vector<const char*>> layouts = {
    {"front tokenizer", "engine executor"},
    {"front tokenizer", "engine executor", "engine executor"},
    {"front tokenizer engine", "executor"},
    {"front tokenizer engine", "executor", "executor"},
    {"front", "tokenizer", "engine", "executor"},
    {"front", "tokenizer", "tokenizer", "engine executor", "engine executor"},
    {"front tokenizer engine executor x2", "executor"},
    {"front tokenizer engine executor x3", "executor", "executor", "executor"},
    {"front tokenizer", "engine executor x2", "executor", "executor"},
    {"front", "tokenizer", "engine executor x3", "executor", "executor"},
    {"front tokenizer", "engine executor x2", "engine executor x2", "executor", "executor"},
    {"front tokenizer", "executor", "executor", "engine executor x2"},
    {"front tokenizer engine x2", "executor", "executor"},
    {"front tokenizer", "engine x3", "executor", "executor", "executor", "executor"},
};

bool plays(const std::string& roles, const std::string& role) {
  return roles.find(role) != std::string::npos;
}

std::uint32_t ranks_of(const std::string& roles) {
  return plays(roles, "x3") ? 3 : plays(roles, "x2") ? 2 : 1;
}

std::pair<std::size_t, std::size_t> pair_of(std::size_t a, std::size_t b) {
  return {std::min(a, b), std::max(a, b)};
}

}  // namespace

Fleet::Fleet(const NodeShape& shape, std::uint64_t seed, std::uint64_t now_ns,
             std::uint64_t calm_ns, Wire wire, Tally& tally, bool narrate)
    : shape_(shape),
      random_{std::mt19937_64(seed)},
      now_ns_(now_ns),
      calm_ns_(calm_ns),
      tally_(tally),
      narrate_(narrate),
      collectives_([this](std::size_t a, std::size_t b) { return passes(a, b); }, now_ns_) {
  delay_max_ns_ = random_.one_in(3) ? 100 * ms : random_.between(1, 5) * ms;
  fault_one_in_ = random_.one_in(5) ? 0 : random_.between(3, 30);
  group_start_ms_ = random_.between(1000, 10'000);
  step_ms_ = random_.one_in(2) ? 10'000 : random_.between(1000, 5000);
  if (fault_one_in_ != 0 && random_.one_in(3)) shape_.rank_errs_one_in = random_.between(30, 300);
  for (const char* roles : layouts[random_.below(layouts.size())]) {
    current_.push_back(0);
    incarnations_.push_back(0);
    add(current_.size() - 1, roles, current_.size() == 1 ? wire : Wire());
  }
  at(now_ns_ + second, [this] { harm(); });
}

Fleet::~Fleet() {
  for (const auto& process : processes_) {
    tally_.counts["steps lost for another rank"] += process->trouble.steps_lost;
    tally_.counts["wrong tokens of a rank"] += process->trouble.wrong_tokens;
  }
  for (auto& process : processes_)
    if (process->life) kill(process->index);
}

void Fleet::at(std::uint64_t at_ns, std::function<void()> happen) {
  queue_.push({at_ns, events_++, std::move(happen)});
}

bool Fleet::runs(const Process& process) const {
  return process.life != nullptr && process.life->stopped_until_ns <= now_ns_;
}

void Fleet::add(std::size_t place, const std::string& roles, Wire wire) {
  auto& process = *processes_.emplace_back(std::make_unique<Process>());
  process.index = current_[place] = processes_.size() - 1;
  process.place = place;
  process.name = fmt::format("p{}", place);
  process.roles = roles;
  process.wire = std::move(wire);
  start(process.index);
}

bool Fleet::is_current(const Process& process) const {
  return current_[process.place] == process.index;
}

/// Stopped and given up for dead: another is started in its place, and it goes on all the same, for
/// a while.
void Fleet::replace(std::size_t index) {
  auto& old = *processes_[index];
  tell("is stopped and replaced", old);
  old.life->stopped_until_ns = now_ns_ + random_.between(50, 5000) * ms;
  at(old.life->stopped_until_ns + random_.between(1, 8000) * ms, [this, index] {
    if (processes_[index]->life != nullptr) kill(index);
  });
  add(old.place, old.roles, {});
}

void Fleet::start(std::size_t index) {
  auto& process = *processes_[index];
  tell("starts", process);
  process.incarnation = ++incarnations_[process.place];
  process.life = std::make_unique<Process::Life>();
  auto& life = *process.life;
  life.clock_ns = life.next_tick_ns = now_ns_;
  life.coordinator().advance_time(std::chrono::nanoseconds(now_ns_));
  life.peers = std::make_shared<Peers>([this, &process](transport::LinkId link, std::string text) {
    if (process.life == nullptr) return;
    transport::LinkOutput out;
    process.life->links->send(link, std::move(text), now_ns_, out);
    act(process, std::move(out));
  });
  life.links.emplace(transport::LinkConfig{},
                     transport::NodeIdentity{process.name, process.incarnation});
  life.way = std::make_shared<Way>(process.wire, true);
  actors::NodeConfig quiet;
  quiet.log_level = "off";
  const auto log = *actors::RequestLog::open(quiet);
  const actors::RankLoader load = [this, &process](
                                      kernels::Completion completion,
                                      const auto& group) -> Result<actors::LoadedEngine> {
    if (group != nullptr) ++tally_.counts["ranks started"];
    return load_bytes(shape_,
                      std::make_unique<Device>(shape_, random_, process.trouble, process.device,
                                               std::move(completion),
                                               std::dynamic_pointer_cast<RankCommunicator>(group)));
  };
  const actors::GroupPrepare prepare = [this, index](const auto& shard, const auto& options) {
    return collectives_.prepare(index, shard, options);
  };
  const actors::FactsLoader facts = [] {
    return Result<std::shared_ptr<actors::EngineFacts>>(fakes::byte_facts());
  };
  const bool batcher = plays(process.roles, "engine"), computes = plays(process.roles, "executor");
  const bool tokenizer = plays(process.roles, "tokenizer");
  actors::SupervisorSetup setup;
  const auto ranks = ranks_of(process.roles);
  setup.engines.push_back({"bytes", batcher, computes ? load : nullptr, facts, ranks});
  if (plays(process.roles, "front")) {
    transport::SessionConfig session;
    session.welcome.window_tokens = shape_.stream.window_tokens;
    life.session = life.system.spawn(actors::session,
                                     actors::SessionSetup{life.way, session, 1, log, life.status});
    setup.session = life.session;
  }
  setup.outbox = life.way;
  setup.publish = "inproc://published";
  setup.stream = shape_.stream;
  setup.tokenizers = tokenizer ? 1 : 0;
  setup.streamers = 2;
  setup.log = log;
  setup.status = life.status;
  setup.peers = life.peers;
  setup.epoch = process.incarnation << 32;  // as times are: above all of the last process's groups
  setup.group_start_ms = group_start_ms_;
  setup.step_ms = step_ms_;
  setup.restarts_max = 1000;
  setup.own_threads = false;
  setup.prepare_group = prepare;
  life.supervisor = life.system.spawn(actors::supervisor, std::move(setup));
  actors::HostSetup hosted;
  hosted.peers = life.peers;
  hosted.engines.push_back({"bytes", facts, tokenizer, computes && !batcher ? load : nullptr});
  hosted.news = life.supervisor;
  hosted.log = log;
  hosted.own_threads = false;
  hosted.collectives.deadline_ms = step_ms_;
  hosted.group_start_ms = group_start_ms_;
  hosted.executor_ended = [this] { ++executors_lost_; };
  hosted.prepare_group = prepare;
  life.peers->serve(life.system.spawn(actors::host, std::move(hosted)));
  caf::anon_send(life.supervisor, actors::ready_atom::value, life.peers->host());
  for (std::uint32_t other = 0; other < process.place; ++other) {
    transport::LinkOutput out;
    life.links->dial(other, now_ns_, out);
    act(process, std::move(out));
  }
}

/// Nothing of it is heard any more, by anybody.
void Fleet::kill(std::size_t index) {
  auto& process = *processes_[index];
  tell("dies", process);
  const auto life = std::move(process.life);  // what its actors still say goes nowhere
  life->way->dead = true;
  process.newest.clear();
  for (const auto& [link, session] : std::exchange(process.up, {}))
    life->peers->down({link, session.peer.name, {ErrorCode::unavailable, "the process ends", 0}});
  life->coordinator().run();
  caf::anon_send_exit(life->supervisor, caf::exit_reason::user_shutdown);
  life->supervisor = nullptr;
  life->session = nullptr;
  life->coordinator().run();
  life->peers->serve({});
  life->coordinator().run();
}

void Fleet::settle(Process& process, std::size_t messages) {
  if (!runs(process)) return;
  auto& life = *process.life;
  auto& coordinator = life.coordinator();
  if (now_ns_ > life.clock_ns) {
    coordinator.advance_time(std::chrono::nanoseconds(now_ns_ - life.clock_ns));
    life.clock_ns = now_ns_;
  }
  for (; messages > 0 && coordinator.has_job(); --messages) {
    std::swap(coordinator.jobs.front(), coordinator.jobs[random_.below(coordinator.jobs.size())]);
    coordinator.run_once();
    for (auto& peer : std::exchange(life.way->lost, {}))
      caf::anon_send(life.session, actors::lost_atom::value, std::move(peer));
  }
  check(process);
}

void Fleet::check(const Process& process) {
  if (!process.life->way->fault.empty()) throw Violation(process.life->way->fault);
  if (!process.trouble.fault.empty()) throw Violation(process.trouble.fault);
  if (const auto status = process.life->status->now();
      !status && status.error().code != ErrorCode::unavailable)
    throw Violation(process.name + " failed: " + status.error().message);
}

void Fleet::act(Process& process, transport::LinkOutput out) {
  auto& life = *process.life;
  for (const auto& connect : out.connects) {
    for (auto& each : connections_)
      if (each.ends[0].process == process.index &&
          processes_[each.ends[1].process]->place == connect.dial)
        each.broken = true;
    Connection made;
    made.ends[0] = {process.index, process.incarnation, connect.route, false, 0};
    const auto& other = *processes_[current_[connect.dial]];
    made.broken = other.life == nullptr;
    made.ends[1] = {other.index, other.incarnation, fmt::format("in {}", connections_.size()),
                    false, 0};
    connections_.push_back(std::move(made));
  }
  for (const auto& up : out.ups) {
    ++tally_.counts["links up"];
    auto& newest = process.newest[up.peer.name];
    if (up.peer.incarnation < newest) throw Violation("a zombie began a session");
    newest = up.peer.incarnation;
    process.up.emplace(up.link, Process::Session{up.peer, 0});
    life.peers->up(up);
  }
  for (const auto& down : out.downs) {
    ++tally_.counts["links lost"];
    ++executors_lost_;
    tell("lost " + down.peer + ": " + down.why.message, process);
    process.up.erase(down.link);
    life.peers->down(down);
  }
  for (auto& frame : out.frames) transmit(process, std::move(frame));
}

void Fleet::transmit(Process& process, transport::LinkFrame frame) {
  for (std::size_t i = connections_.size(); i-- > 0;) {
    auto& connection = connections_[i];
    for (const int from : {0, 1}) {
      const auto& end = connection.ends[from];
      if (end.process != process.index || end.incarnation != process.incarnation ||
          end.route != frame.route)
        continue;
      auto& to = connection.ends[1 - from];
      if (connection.broken || to.incarnation != processes_[to.process]->incarnation) {
        // A ROUTER knows that its peer is gone; a DEALER waits and hopes.
        if (from == 1)
          at(now_ns_, [this, &process, route = frame.route, was = process.incarnation] {
            if (process.life == nullptr || process.incarnation != was) return;
            transport::LinkOutput out;
            process.life->links->on_unreachable(route, now_ns_, out);
            act(process, std::move(out));
          });
        return;
      }
      to.last_due_ns = std::max(to.last_due_ns, now_ns_ + 1000 + random_.below(delay_max_ns_));
      at(to.last_due_ns,
         [this, i, from, kept = std::make_shared<transport::LinkFrame>(std::move(frame))] {
           deliver(i, 1 - from, kept);
         });
      return;
    }
  }
}

void Fleet::deliver(std::size_t number, int to,
                    const std::shared_ptr<transport::LinkFrame>& frame) {
  const auto& connection = connections_[number];
  const auto& end = connection.ends[to];
  auto& process = *processes_[end.process];
  if (process.life == nullptr || !passes(end.process, connection.ends[1 - to].process)) return;
  if (!waits(process)) return take(number, to, *frame);
  process.life->waiting.emplace_back([this, number, to, frame] { take(number, to, *frame); });
}

void Fleet::take(std::size_t number, int to, const transport::LinkFrame& frame) {
  const auto& connection = connections_[number];
  const auto& end = connection.ends[to];
  auto& process = *processes_[end.process];
  if (connection.broken || end.deaf || process.incarnation != end.incarnation) return;
  const auto header = transport::decode_link_header(frame.header);
  if (!header) throw Violation("a link header cannot be read: " + header.error().message);
  transport::LinkOutput out;
  const auto link = process.life->links->on_frame(end.route, *header, frame.payload, now_ns_, out);
  act(process, std::move(out));
  if (!link) return;
  const auto session = process.up.find(*link);
  if (session == process.up.end()) throw Violation("a message came on a session that is not up");
  if (header->sequence != ++session->second.heard)
    throw Violation("a session goes on behind a message that was lost");
  if (header->incarnation < process.newest[session->second.peer.name])
    throw Violation("a zombie was heard");
  if (auto taken = process.life->peers->receive(*link, frame.payload); !taken)
    throw Violation("a node's message was refused: " + taken.error().message);
  settle(process, random_.one_in(4) ? random_.below(6) : SIZE_MAX);
}

bool Fleet::waits(const Process& process) const {
  return !runs(process) || !process.life->waiting.empty();
}

void Fleet::receive(const transport::Peer& peer, const std::string& frame) {
  auto& front = *processes_[0];
  if (front.life == nullptr) return;
  const auto hear = [this, &front, peer, frame] {
    auto message = transport::decode(frame, transport::Limits());
    if (!message) throw Violation("a client sent what cannot be read: " + message.error().message);
    caf::anon_send(front.life->session, actors::inbound_atom::value,
                   actors::Inbound{peer, std::move(*message)});
  };
  if (waits(front))
    front.life->waiting.emplace_back(hear);
  else
    hear();
}

void Fleet::advance(std::uint64_t now_ns) {
  for (;;) {
    std::uint64_t due_ns = queue_.empty() ? UINT64_MAX : queue_.top().at_ns;
    Process* ticking = nullptr;
    for (auto& process : processes_) {
      if (process->life == nullptr) continue;
      const auto tick_ns =
          std::max({process->life->next_tick_ns, process->life->stopped_until_ns, now_ns_});
      if (tick_ns < due_ns) {
        due_ns = tick_ns;
        ticking = process.get();
      }
    }
    if (due_ns > now_ns) break;
    now_ns_ = std::max(now_ns_, due_ns);
    if (ticking != nullptr) {
      for (auto& waiting = ticking->life->waiting; !waiting.empty(); waiting.pop_front())
        waiting.front()();
      transport::LinkOutput out;
      ticking->life->next_tick_ns = ticking->life->links->tick(now_ns_, out);
      act(*ticking, std::move(out));
      // What is sent or heard meanwhile only puts off what is due, but for a new attempt.
      ticking->life->next_tick_ns = std::min(ticking->life->next_tick_ns, now_ns_ + 50 * ms);
      settle(*ticking, SIZE_MAX);
    } else {
      const Event event = queue_.top();
      queue_.pop();
      event.happen();
    }
  }
  now_ns_ = now_ns;
}

void Fleet::run(std::size_t messages) {
  for (auto& process : processes_) settle(*process, messages);
}

bool Fleet::passes(std::size_t a, std::size_t b) const {
  const auto cut = cut_until_ns_.find(pair_of(a, b));
  return cut == cut_until_ns_.end() || cut->second <= now_ns_;
}

std::uint32_t Fleet::executors_lost() const {
  auto lost = executors_lost_;
  for (const auto& process : processes_)
    lost += process->trouble.steps_lost + process->trouble.wrong_tokens;
  return lost;
}

bool Fleet::steps_failed() const {
  return std::ranges::any_of(processes_,
                             [](const auto& process) { return process->trouble.steps_failed; });
}

bool Fleet::busy() const {
  return std::ranges::any_of(processes_, [&](const auto& process) {
    return process->device != nullptr && process->device->busy();
  });
}

void Fleet::complete_step() {
  std::vector<Process*> able;
  for (auto& process : processes_)
    if (process->device != nullptr && process->device->busy() && runs(*process) &&
        process->slow_until_ns <= now_ns_)
      able.push_back(process.get());
  // Mostly all at once, for they compute side by side; now and then one is ahead of the others.
  std::ranges::shuffle(able, random_.engine);
  if (!able.empty() && random_.one_in(4)) able.erase(able.begin() + 1, able.end());
  for (auto* process : able) process->device->complete();
}

void Fleet::lose_device() {
  std::vector<Device*> devices;
  for (auto& process : processes_)
    if (process->device != nullptr) devices.push_back(process->device);
  if (!devices.empty()) devices[random_.below(devices.size())]->lose();
}

/// Each second's misfortunes, until it is calm.
void Fleet::harm() {
  if (now_ns_ >= calm_ns_) return;
  const auto strikes = [&] { return fault_one_in_ != 0 && random_.one_in(fault_one_in_); };
  for (std::size_t i = 0, count = processes_.size(); i < count; ++i) {
    auto& process = *processes_[i];
    if (process.life == nullptr) continue;
    if (strikes()) {
      ++tally_.counts["processes stopped and continued"];
      tell("is stopped", process);
      process.life->stopped_until_ns = now_ns_ + random_.between(50, 5000) * ms;
    }
    if (strikes() && process.device != nullptr) {
      ++tally_.counts["slow devices"];
      process.slow_until_ns = now_ns_ + random_.between(500, 15'000) * ms;
    }
    if (process.place == 0 || !is_current(process)) continue;  // the front's end is the fleet's
    if (strikes() && random_.one_in(3)) {
      ++tally_.counts["processes replaced while they stood still"];
      replace(i);
    } else if (strikes()) {
      ++tally_.counts["processes started anew"];
      kill(process.index);
      at(now_ns_ + random_.between(10, 3000) * ms, [this, index = process.index] { start(index); });
    }
  }
  for (auto& connection : connections_) {
    if (connection.broken || !strikes()) continue;
    ++tally_.counts["connections between nodes broken"];
    if (random_.one_in(2))
      connection.broken = true;
    else
      connection.ends[random_.below(2)].deaf = true;
  }
  for (std::size_t i = 0; i < processes_.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) {
      if (processes_[i]->life == nullptr || processes_[j]->life == nullptr) continue;
      if (strikes()) {
        ++tally_.counts["partitions between nodes"];
        cut_until_ns_[pair_of(i, j)] = now_ns_ + random_.between(50, 5000) * ms;
      }
      if (strikes() && collectives_.harm(i, j, random_.one_in(2)))
        ++tally_.counts["connections between ranks broken"];
    }
  at(now_ns_ + second, [this] { harm(); });
}

void Fleet::check_idle() {
  auto& front = *processes_[0];
  std::map<std::string, double> values;
  caf::scoped_actor self{front.life->system};
  self->send(front.life->session, actors::stats_atom::value);
  for (int i = 0; i < 200; ++i) {
    advance(now_ns_ + 10 * ms);
    run(SIZE_MAX);
  }
  bool answered = false;
  self->receive(
      [&](const actors::NamedValues& answer) {
        values = {answer.begin(), answer.end()};
        answered = true;
      },
      caf::after(std::chrono::seconds(0)) >> [] {});
  if (!answered) throw Violation("a fleet does not answer for stats");
  const auto demand = [&](const std::string& name, double value) {
    if (values[name] != value)
      throw Violation(fmt::format("{} is {} when all is over, not {}", name, values[name], value));
  };
  if (values["engine.blocks_total"] == 0) throw Violation("no engine serves when all is calm");
  demand("engine.blocks_free", values["engine.blocks_total"]);
  demand("engine.running", 0);
  demand("engine.waiting", 0);
  demand("session.open", 0);
  demand("streams.kept", 0);
  for (const auto& process : processes_)
    if (process->device != nullptr && (process->device->busy() || !process->device->all_closed()))
      throw Violation("a slot is open when all is over");
}

void Fleet::tell(const std::string& what, const Process& process) const {
  if (narrate_)
    fmt::print("{:10.3f} s  {} ({}) {}\n", static_cast<double>(now_ns_) / 1e9, process.name,
               process.roles, what);
}

}  // namespace sluice::simulate
