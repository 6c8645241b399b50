#include "actors/node.hpp"

#include <sodium.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>
#include <utility>
#include <zmq.hpp>

#include "actors/bridge.hpp"
#include "actors/host.hpp"
#include "actors/load.hpp"
#include "actors/log.hpp"
#include "actors/node_check.hpp"
#include "actors/peer_bridge.hpp"
#include "actors/session.hpp"
#include "actors/supervisor.hpp"
#include "actors/work_queue.hpp"
#include "kernels/backends.hpp"
#include "transport/http_page.hpp"
#include "transport/metrics_text.hpp"
#include "transport/signals.hpp"

namespace sluice::actors {
namespace {

struct SystemConfig : caf::actor_system_config {
  SystemConfig() {
    // With CAF's work stealing a message sent from inside a worker wakes nobody: measured at 9.8 ms
    // behind a long computation, 12 us with one queue for all.
    load<WorkScheduler>();
    // Half of the cores: where threads compute on all of them, every further worker that wakes
    // takes a core from one of these. None runs anything long; what may, has a thread of its own.
    set("scheduler.max-threads",
        static_cast<std::uint64_t>(std::max(1U, kernels::usable_cores() / 2)));
  }
};

/// Exit code of a process that ends with its executor: no destructor may wait for what hangs.
constexpr int executor_ended_code = 3;

/// "auto" becomes the name of a backend. Before there are actors: a driver that is absent is looked
/// for once, by the thread of the caller, and what cannot work is known before anything is loaded.
Result<void> choose_backends(NodeConfig& config, RequestLog& log) {
  if (config.make_backend || !plays(config, "executor")) return {};
  for (auto& engine : config.engines) {
    auto choice = kernels::choose_backend(engine.backend, config.backends);
    if (!choice) return tl::unexpected(choice.error());
    if (!choice->note.empty()) log.node_warning("backend", choice->note);
    engine.backend = std::move(choice->name);
  }
  return {};
}

/// libzmq gives each connection to the thread that has the fewest.
constexpr int handshake_threads = 4;

/// Longer than the session waits for its engines, shorter than a scraper waits.
constexpr std::chrono::seconds metrics_timeout{4};

}  // namespace

struct Node::State {
  NodeConfig config;
  std::shared_ptr<RequestLog> log;
  zmq::context_t* context = nullptr;
  std::shared_ptr<transport::Guard> guard;  // with CURVE
  SystemConfig system_config;
  caf::actor_system system{system_config};
  std::shared_ptr<Bridge> bridge;
  std::shared_ptr<PeerBridge> peers;
  transport::NodeIdentity identity;
  std::shared_ptr<NodeStatus> status = std::make_shared<NodeStatus>();
  SessionActor session;
  SupervisorActor supervisor;
  std::unique_ptr<transport::HttpPage> metrics;

  ~State() {
    metrics.reset();  // it asks the session
    if (supervisor) {
      caf::anon_send_exit(supervisor, caf::exit_reason::user_shutdown);
      supervisor = nullptr;
    } else if (session) {
      caf::anon_send_exit(session, caf::exit_reason::user_shutdown);
    }
    session = nullptr;
    if (bridge) bridge->stop();
    if (peers) peers->stop();
    system.await_all_actors_done();
  }

  /// Before anything binds: who may connect is known from the first moment.
  Result<void> secure() {
    const auto& security = config.security;
    if (!security.on() && !security.nodes_on()) return {};
    // Before the context's first socket. A stranger's handshake takes libzmq's thread some 0.4 ms,
    // in which nothing else moves on it: many at once shall not hold all streams.
    context->set(zmq::ctxopt::io_threads, handshake_threads);
    auto started = transport::Guard::start(
        *context, [log = log](const std::string& line) { log->node_warning("refused", line); });
    if (!started) return tl::unexpected(started.error());
    guard = std::move(*started);
    allow(security.clients, security.nodes);
    if (security.on())
      config.endpoint.curve = transport::CurveServer{security.keys, clients_domain, guard};
    if (security.nodes_on())
      config.peers.curve = transport::CurveServer{security.node_keys, nodes_domain, guard};
    return {};
  }

  void allow(const transport::ClientGrants& clients,
             const std::map<transport::CurveKey, std::string>& nodes) const {
    std::map<transport::CurveKey, std::string> names;
    for (const auto& [key, grant] : clients) names.emplace(key, grant.name);
    guard->allow(clients_domain, std::move(names));
    guard->allow(nodes_domain, nodes);
  }

  /// Figures of what is neither an actor nor the clients' side. Any thread.
  NamedValues own_stats() const {
    NamedValues values = peers ? peers->stats() : NamedValues();
    if (guard == nullptr) return values;
    const auto stats = guard->stats();
    values.emplace_back("security.admitted", static_cast<double>(stats.admitted));
    values.emplace_back("security.keys_refused", static_cast<double>(stats.keys_refused));
    values.emplace_back("security.handshakes_failed", static_cast<double>(stats.handshakes_failed));
    return values;
  }

  /// What a client's stats question is answered, for the metrics. Any thread.
  Result<transport::Values> stats() {
    caf::scoped_actor self{system};
    Result<transport::Values> out =
        fail(ErrorCode::unavailable, "the node did not tell its figures in time: ask again");
    const auto ask = [&](const auto& actor) {
      self->request(actor, metrics_timeout, stats_atom::value)
          .receive(
              [&](const NamedValues& values) {
                out = transport::Values(values.begin(), values.end());
              },
              [](const caf::error&) {});
    };
    if (session)
      ask(session);
    else
      ask(supervisor);
    return out;
  }
};

Node::Node(std::unique_ptr<State> state) : state_(std::move(state)) {}
Node::~Node() = default;

namespace {

transport::NodeIdentity identity_of(const transport::PeerConfig& config) {
  // Later starts have higher numbers; two of one name within a clock's step are not told apart.
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto incarnation =
      static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
  if (!config.name.empty()) return {config.name, incarnation};
  return {fmt::format("{:08x}{:08x}", randombytes_random(), randombytes_random()), incarnation};
}

transport::SessionConfig session_config(const NodeConfig& settings) {
  transport::SessionConfig config;
  config.clients = settings.security.clients;
  config.welcome.server = "sluice";
  config.welcome.site = settings.site.name;
  config.welcome.frame_bytes_max =
      static_cast<std::uint32_t>(settings.endpoint.limits.frame_bytes_max);
  config.welcome.window_tokens = settings.stream.window_tokens;
  return config;
}

BackendFactory backend_factory(const NodeConfig& settings) {
  if (settings.make_backend) return settings.make_backend;
  return [search = settings.backends, cache = settings.weight_cache,
          cache_bytes = settings.weight_cache_bytes](const EngineConfig& engine,
                                                     kernels::Completion completion) {
    const kernels::BackendOptions options{.threads = engine.threads,
                                          .weight_cache = cache,
                                          .weight_cache_bytes = cache_bytes,
                                          .device = engine.device};
    return kernels::make_backend(engine.backend, options, std::move(completion), search);
  };
}

/// Every channel that opens needs its own copy, but a tokenizer is read once.
FactsLoader load_once(FactsLoader load) {
  struct Cache {
    std::mutex mutex;
    std::shared_ptr<EngineFacts> facts;
  };
  return [cache = std::make_shared<Cache>(),
          load = std::move(load)]() -> Result<std::shared_ptr<EngineFacts>> {
    const std::lock_guard lock(cache->mutex);
    if (!cache->facts) {
      auto loaded = load();
      if (!loaded) return loaded;
      cache->facts = std::move(*loaded);
    }
    return std::make_shared<EngineFacts>(*cache->facts);
  };
}

/// What runs here of each engine, and what of it is offered to other nodes.
void set_up_engines(const NodeConfig& settings, const LoadProgress& progress,
                    const std::shared_ptr<RequestLog>& log, SupervisorSetup& supervised,
                    HostSetup& hosted) {
  for (const auto& engine : settings.engines) {
    const RankLoader executor = [engine = std::make_shared<EngineConfig>(engine),
                                 site = settings.site, backends = backend_factory(settings),
                                 progress,
                                 log](kernels::Completion completion,
                                      const std::shared_ptr<kernels::Communicator>& group) {
      auto loaded = load_engine(*engine, site, backends, std::move(completion), progress, group);
      // An executor that takes another's place needs as large a pool, whatever memory is free
      // by then.
      if (loaded) engine->kv_bytes = loaded->pool.blocks * kv_block_bytes(loaded->pool);
      if (loaded && group)
        log->node("group", fmt::format("rank {}: {}", group->shard().rank,
                                       loaded->backend->device().collectives));
      return loaded;
    };
    const FactsLoader facts =
        load_once([engine, site = settings.site] { return load_facts(engine, site); });
    const bool batcher = plays(settings, "engine");
    const bool computes = plays(settings, "executor") && !(batcher && engine.isolate == "on");
    supervised.engines.push_back(
        {engine.name, batcher, computes ? executor : nullptr, facts, engine.tensor_parallel});
    hosted.engines.push_back({engine.name, facts, plays(settings, "tokenizer"),
                              computes && !batcher ? executor : nullptr});
  }
}

}  // namespace

std::string engine_title(const std::string& model) {
  const std::filesystem::path path(model);
  return (std::filesystem::is_directory(path) ? path.filename() : path.stem()).string();
}

Result<std::unique_ptr<Node>> Node::start(NodeConfig config, zmq::context_t& context,
                                          const LoadProgress& progress) {
  if (auto checked = check(config); !checked) return tl::unexpected(checked.error());
  auto log = RequestLog::open(config);
  if (!log) return tl::unexpected(log.error());

  if (auto chosen = choose_backends(config, **log); !chosen) return tl::unexpected(chosen.error());

  std::unique_ptr<State> state;
  {
    // The actors' threads are made here, and may send in the I/O thread's stead.
    const transport::SignalsBlocked meanwhile;
    state = std::make_unique<State>();
  }
  state->config = std::move(config);
  state->log = *log;
  state->context = &context;
  if (auto secured = state->secure(); !secured) return tl::unexpected(secured.error());
  // Here, and not where a group starts: a name server may take its time.
  if (std::ranges::any_of(state->config.engines,
                          [](const auto& engine) { return engine.tensor_parallel > 1; })) {
    auto host = kernels::resolve_host(state->config.peers.collectives);
    if (!host) return tl::unexpected(host.error());
    state->config.peers.collectives = std::move(*host);
  }
  if (has_peers(state->config))  // nodes know an engine by its name
    for (auto& engine : state->config.engines)
      if (engine.name.empty()) engine.name = engine_title(engine.model);
  const auto& settings = state->config;
  state->identity = identity_of(settings.peers);
  SupervisorSetup setup;
  HostSetup hosted;
  set_up_engines(settings, progress, *log, setup, hosted);
  if (has_peers(settings))
    state->peers = std::make_shared<PeerBridge>(context, settings.peers, state->identity, *log);
  if (plays(settings, "front")) {
    state->bridge = std::make_shared<Bridge>(
        context, settings.endpoint,
        [log = *log](const std::string& line) { log->node_warning("stalled", line); });
    // Bound before anything is loaded: a port in use is known at once, and clients are told to
    // wait. The session greets nobody before the supervisor's first message, which comes after.
    state->session = state->system.spawn(
        session,
        SessionSetup{state->bridge, session_config(settings), settings.engines.size(), *log,
                     state->status, [raw = state.get()] { return raw->own_stats(); }});
    if (auto bound = state->bridge->start(state->session); !bound)
      return tl::unexpected(bound.error());
    setup.session = state->session;
    setup.outbox = state->bridge;
    setup.publish = state->bridge->publish_address();
  }
  setup.stream = settings.stream;
  setup.tokenizers = plays(settings, "tokenizer") ? std::max(1U, settings.tokenizer_threads) : 0;
  setup.streamers = settings.streamers;
  setup.log = *log;
  setup.status = state->status;
  setup.peers = state->peers;
  setup.more_stats = [raw = state.get()] { return raw->own_stats(); };
  setup.epoch = state->identity.incarnation;
  setup.collectives = settings.peers.collectives;
  setup.group_start_ms = settings.peers.group_start_ms;
  setup.step_ms = settings.peers.step_ms;
  state->supervisor = state->system.spawn(supervisor, std::move(setup));
  state->supervisor->attach_functor([status = state->status](const caf::error&) {
    status->set_failed({ErrorCode::internal, "the supervisor ended: restart the node"});
  });
  if (state->peers) {
    hosted.peers = state->peers;
    hosted.news = state->supervisor;
    hosted.log = *log;
    if (settings.ends_with_executor)
      hosted.executor_ended = [] { std::_Exit(executor_ended_code); };
    hosted.collectives = {settings.peers.collectives, settings.peers.step_ms};
    hosted.group_start_ms = settings.peers.group_start_ms;
    auto hosting = state->system.spawn(host, std::move(hosted));
    caf::anon_send(state->supervisor, ready_atom::value, hosting);
    if (auto started = state->peers->start(std::move(hosting)); !started)
      return tl::unexpected(started.error());
    (*log)->node("peers", fmt::format("{} {}", state->identity.name, state->peers->address()));
  }
  if (auto ready = state->status->wait(); !ready) return tl::unexpected(ready.error());
  if (!settings.metrics_listen.empty()) {
    auto metrics = transport::HttpPage::serve(
        settings.metrics_listen, "/metrics",
        [raw = state.get()] { return raw->stats().map(transport::metrics_text); });
    if (!metrics) return tl::unexpected(metrics.error());
    state->metrics = std::move(*metrics);
    (*log)->node("metrics", state->metrics->address() + "/metrics");
  }
  auto node = std::unique_ptr<Node>(new Node(std::move(state)));
  (*log)->node("ready", node->address());
  return node;
}

const std::string& Node::address() const {
  if (state_->bridge) return state_->bridge->address();
  return peer_address().empty() ? state_->identity.name : peer_address();
}

const std::string& Node::publish_address() const {
  static const std::string none;
  return state_->bridge ? state_->bridge->publish_address() : none;
}

const std::string& Node::peer_address() const {
  static const std::string none;
  return state_->peers ? state_->peers->address() : none;
}

std::string Node::metrics_address() const {
  return state_->metrics ? state_->metrics->address() : "";
}

Result<void> Node::allow(transport::ClientGrants clients,
                         std::map<transport::CurveKey, std::string> nodes) {
  if (state_->guard == nullptr)
    return fail(ErrorCode::bad_request,
                "the node has no keys, so it has no allow lists: write security.keys");
  if (auto checked = check_lists(clients, nodes); !checked) return checked;
  const auto tell = [this](const transport::ClientGrants& grants) {
    if (state_->session) caf::anon_send(state_->session, clients_atom::value, grants);
  };
  // Whoever the guard admits is known to the session already; whose stream the session stops, is
  // cut off before its end can go out as if it had been asked for.
  auto& present = state_->config.security.clients;
  auto both = clients;
  both.insert(present.begin(), present.end());
  tell(both);
  state_->allow(clients, nodes);
  if (state_->bridge) state_->bridge->cut_removed();
  if (state_->peers) state_->peers->cut_removed();
  tell(clients);
  present = clients;
  state_->log->node("allowed", fmt::format("{} clients, {} nodes", clients.size(), nodes.size()));
  return {};
}

void Node::log_failure(std::string_view event, const Error& why) {
  state_->log->node_failed(event, why);
}

bool Node::drain(std::uint32_t timeout_ms) {
  if (!state_->session) return true;  // fronts go on elsewhere from the tokens they hold
  caf::scoped_actor self{state_->system};
  bool drained = false;
  self->request(state_->session, std::chrono::milliseconds(timeout_ms), drain_atom::value)
      .receive([&](bool done) { drained = done; }, [](const caf::error&) {});
  return drained;
}

Result<void> Node::health() const { return state_->status->now(); }

}  // namespace sluice::actors
