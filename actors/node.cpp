#include "actors/node.hpp"

#include <chrono>
#include <utility>

#include "actors/bridge.hpp"
#include "actors/load.hpp"
#include "actors/log.hpp"
#include "actors/session.hpp"
#include "actors/supervisor.hpp"
#include "transport/http_page.hpp"
#include "transport/metrics_text.hpp"

namespace sluice::actors {
namespace {

struct SystemConfig : caf::actor_system_config {
  SystemConfig() {
    // With work stealing a message sent from inside a worker wakes nobody: measured at 9.8 ms
    // behind a long computation, 12 us with sharing.
    set("scheduler.policy", caf::atom("sharing"));
  }
};

/// Promise 6 of the design: what leaves the host must be encrypted and authenticated.
bool is_local(const std::string& endpoint) {
  return endpoint.empty() || !endpoint.starts_with("tcp://") ||
         endpoint.starts_with("tcp://127.") || endpoint.starts_with("tcp://localhost:") ||
         endpoint.starts_with("tcp://[::1]");
}

Result<void> check(const NodeConfig& config) {
  if (config.engines.empty())
    return fail(ErrorCode::bad_request, "the node has no engine: name a model with --model FILE");
  for (const auto& address :
       {config.endpoint.listen, config.endpoint.publish, config.metrics_listen})
    if (!config.insecure && !is_local(address))
      return fail(
          ErrorCode::bad_request,
          "{} can be reached from other hosts in plain text: listen on 127.0.0.1 or ipc, or "
          "write insecure = true",
          address);
  for (std::size_t i = 0; i < config.engines.size(); ++i)
    for (std::size_t j = i + 1; j < config.engines.size(); ++j)
      if (config.engines[i].name == config.engines[j].name &&
          config.engines[i].model == config.engines[j].model)
        return fail(
            ErrorCode::bad_request, "two engines are both called '{}': give each its own name",
            config.engines[i].name.empty() ? config.engines[i].model : config.engines[i].name);
  return {};
}

/// "auto" becomes the name of a backend. Before there are actors: a driver that is absent is looked
/// for once, by the thread of the caller, and what cannot work is known before anything is loaded.
Result<void> choose_backends(NodeConfig& config, RequestLog& log) {
  if (config.make_backend) return {};
  for (auto& engine : config.engines) {
    auto choice = kernels::choose_backend(engine.backend, config.backends);
    if (!choice) return tl::unexpected(choice.error());
    if (!choice->note.empty()) log.node_warning("backend", choice->note);
    engine.backend = std::move(choice->name);
  }
  return {};
}

/// Longer than the session waits for its engines, shorter than a scraper waits.
constexpr std::chrono::seconds metrics_timeout{4};

}  // namespace

struct Node::State {
  NodeConfig config;
  SystemConfig system_config;
  caf::actor_system system{system_config};
  std::shared_ptr<Bridge> bridge;
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
    system.await_all_actors_done();
  }

  /// What a client's stats question is answered, for the metrics. Any thread.
  Result<transport::Values> stats() {
    caf::scoped_actor self{system};
    Result<transport::Values> out =
        fail(ErrorCode::unavailable, "the node did not tell its figures in time: ask again");
    self->request(session, metrics_timeout, stats_atom::value)
        .receive([&](const NamedValues& values) {
          out = transport::Values(values.begin(), values.end());
        }, [](const caf::error&) {});
    return out;
  }
};

Node::Node(std::unique_ptr<State> state) : state_(std::move(state)) {}
Node::~Node() = default;

Result<std::unique_ptr<Node>> Node::start(NodeConfig config, zmq::context_t& context,
                                          const LoadProgress& progress) {
  if (auto checked = check(config); !checked) return tl::unexpected(checked.error());
  auto log = RequestLog::open(config);
  if (!log) return tl::unexpected(log.error());

  if (auto chosen = choose_backends(config, **log); !chosen) return tl::unexpected(chosen.error());

  auto state = std::make_unique<State>();
  state->config = std::move(config);
  const auto& settings = state->config;
  state->bridge = std::make_shared<Bridge>(context, settings.endpoint);

  transport::SessionConfig session_config;
  auto& welcome = session_config.welcome;
  welcome.server = "sluice";
  welcome.site = settings.site.name;
  welcome.frame_bytes_max = static_cast<std::uint32_t>(settings.endpoint.limits.frame_bytes_max);
  welcome.window_tokens = settings.stream.window_tokens;
  // Bound before anything is loaded: a port in use is known at once, and clients are told to wait.
  // The session greets nobody before the supervisor's first message, which comes after this.
  state->session = state->system.spawn(
      session,
      SessionSetup{state->bridge, session_config, settings.engines.size(), *log, state->status});
  if (auto bound = state->bridge->start(state->session); !bound)
    return tl::unexpected(bound.error());

  SupervisorSetup setup;
  BackendFactory backends = settings.make_backend;
  if (!backends)
    backends = [search = settings.backends](const EngineConfig& engine,
                                            kernels::Completion completion) {
      return kernels::make_backend(engine.backend,
                                   {.threads = engine.threads, .device = engine.device},
                                   std::move(completion), search);
    };
  for (const auto& engine : settings.engines)
    setup.engines.push_back(
        [engine, site = settings.site, backends, progress](kernels::Completion completion) {
          return load_engine(engine, site, backends, std::move(completion), progress);
        });
  setup.session = state->session;
  setup.outbox = state->bridge;
  setup.publish = state->bridge->publish_address();
  setup.stream = settings.stream;
  setup.tokenizers = settings.tokenizer_threads;
  setup.streamers = settings.streamers;
  setup.log = *log;
  setup.status = state->status;
  state->supervisor = state->system.spawn(supervisor, std::move(setup));
  state->supervisor->attach_functor([status = state->status](const caf::error&) {
    status->set_failed({ErrorCode::internal, "the supervisor ended: restart the node"});
  });
  if (auto ready = state->status->wait(); !ready) return tl::unexpected(ready.error());
  if (!settings.metrics_listen.empty()) {
    auto metrics = transport::HttpPage::serve(
        settings.metrics_listen, "/metrics", [raw = state.get()] {
          return raw->stats().map(transport::metrics_text);
        });
    if (!metrics) return tl::unexpected(metrics.error());
    state->metrics = std::move(*metrics);
    (*log)->node("metrics", state->metrics->address() + "/metrics");
  }
  (*log)->node("ready", state->bridge->address());
  return std::unique_ptr<Node>(new Node(std::move(state)));
}

const std::string& Node::address() const { return state_->bridge->address(); }

const std::string& Node::publish_address() const { return state_->bridge->publish_address(); }

std::string Node::metrics_address() const {
  return state_->metrics ? state_->metrics->address() : "";
}

bool Node::drain(std::uint32_t timeout_ms) {
  caf::scoped_actor self{state_->system};
  bool drained = false;
  self->request(state_->session, std::chrono::milliseconds(timeout_ms), drain_atom::value)
      .receive([&](bool done) { drained = done; }, [](const caf::error&) {});
  return drained;
}

Result<void> Node::health() const { return state_->status->now(); }

}  // namespace sluice::actors
