// sluice node: serves until it is told to stop; SIGHUP has it read its allow lists again.

#include "actors/node.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <optional>
#include <thread>
#include <zmq.hpp>

#include "cli/children.hpp"
#include "cli/command.hpp"
#include "cli/config.hpp"
#include "cli/terminal.hpp"

namespace sluice::cli {

namespace {

struct Options {
  std::string config;
  std::string model;
  std::vector<std::string> join, roles;
  std::optional<std::string> peers_listen, name, collectives, keys, clients, isolate;
  std::optional<std::string> listen, publish, metrics, backend, quantization, kv_cache_dtype,
      log_level, chat_format, site, weight_cache;
  std::optional<std::uint32_t> tensor_parallel, ranks, device, threads, slots, context_tokens;
  bool insecure = false;
  bool print = false;
};

template <class T>
void override_with(T& target, const std::optional<T>& value) {
  if (value) target = *value;
}

/// The file's configuration with the command line's on top.
Result<Config> effective_config(const Options& options) {
  Config config;
  if (!options.config.empty()) {
    auto read = read_config(options.config);
    if (!read) return read;
    config = std::move(*read);
  }
  auto& engines = config.node.engines;
  if (!options.model.empty()) {
    if (engines.size() > 1) {
      throw UsageError{"--model replaces a configuration's only engine; this one has several"};
    }
    if (engines.empty()) engines.emplace_back();
    engines.front().model = options.model;
  }
  if (engines.empty()) throw UsageError{"give --model FILE, or --config FILE with an [[engine]]"};
  for (actors::EngineConfig& engine : engines) {
    override_with(engine.backend, options.backend);
    override_with(engine.quantization, options.quantization);
    override_with(engine.kv_cache_dtype, options.kv_cache_dtype);
    override_with(engine.tensor_parallel, options.tensor_parallel);
    override_with(engine.ranks, options.ranks);
    override_with(engine.device, options.device);
    override_with(engine.threads, options.threads);
    override_with(engine.isolate, options.isolate);
    override_with(engine.slots, options.slots);
    override_with(engine.context_tokens, options.context_tokens);
    override_with(engine.chat_format, options.chat_format);
  }
  override_with(config.security.keys, options.keys);
  override_with(config.security.clients, options.clients);
  override_with(config.node.endpoint.listen, options.listen);
  override_with(config.node.peers.listen, options.peers_listen);
  override_with(config.node.peers.name, options.name);
  override_with(config.node.peers.collectives, options.collectives);
  if (!options.join.empty()) config.node.peers.join = options.join;
  if (!options.roles.empty()) config.node.roles = options.roles;
  override_with(config.node.endpoint.publish, options.publish);
  override_with(config.node.metrics_listen, options.metrics);
  override_with(config.node.site.name, options.site);
  override_with(config.node.log_level, options.log_level);
  override_with(config.node.weight_cache, options.weight_cache);
  if (options.insecure) config.node.insecure = true;
  return config;
}

/// SIGTERM and SIGINT as values, and SIGHUP where there is something to read again (elsewhere it
/// ends the process, as that of its terminal should). Blocks them in the calling thread, and so in
/// every thread that it starts later; a thread of its own waits for them. The second one that stops
/// ends the process.
class Signals {
 public:
  explicit Signals(bool reloads) {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    if (reloads) sigaddset(&set_, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    if (pipe(pipe_) != 0) SLUICE_ASSERT(false, "a pipe at start");
    // Detached for life: it waits in the kernel until the process ends.
    std::thread([set = set_, out = pipe_[1], loading = loading_] {
      const auto next_stop = [&] {
        for (int signal = 0;;) {
          sigwait(&set, &signal);
          if (signal != SIGHUP) return;
          (void)!write(out, "h", 1);
        }
      };
      next_stop();
      if (loading->load()) _exit(0);  // nothing is served yet, so nothing is lost
      (void)!write(out, "s", 1);
      next_stop();
      static const char message[] = "sluice: unavailable: stopped at once by the second signal\n";
      (void)!write(STDERR_FILENO, message, sizeof message - 1);
      _exit(1);
    }).detach();
  }

  void loaded() { loading_->store(false); }

  enum class Told { nothing, reload, stop };

  /// What came next, waiting up to `timeout_ms` for it.
  Told wait(int timeout_ms) {
    zmq::pollitem_t item{nullptr, pipe_[0], ZMQ_POLLIN, 0};
    if (zmq::poll(&item, 1, std::chrono::milliseconds(timeout_ms)) <= 0) return Told::nothing;
    char told = 0;
    return read(pipe_[0], &told, 1) == 1 && told == 'h' ? Told::reload : Told::stop;
  }

 private:
  sigset_t set_{};
  int pipe_[2] = {-1, -1};
  std::shared_ptr<std::atomic<bool>> loading_ = std::make_shared<std::atomic<bool>>(true);
};

// How long a node that cannot serve any more goes unnoticed.
constexpr int health_every_ms = 500;

/// Reads the allow lists again. What cannot be read changes nothing.
void reload(const SecurityFiles& files, actors::Node& node) {
  actors::SecurityConfig lists;
  auto done = load_allow_lists(files, lists);
  if (done) done = node.allow(std::move(lists.clients), std::move(lists.nodes));
  if (!done) node.log_failure("allow lists kept", done.error());
}

/// A connection takes a descriptor, a stranger's too until it has said who it is: 1,024, as many
/// systems allow unless asked, is what one idle peer can use up.
void raise_descriptor_limit() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

Result<void> serve(Config config) {
  raise_descriptor_limit();
  Signals signals(config.node.security.on() || config.node.security.nodes_on());
  const auto children = ChildNodes::start(config);
  if (!children) return tl::unexpected(children.error());
  zmq::context_t context;
  const auto bar = std::make_shared<ProgressBar>();
  auto node = actors::Node::start(
      config.node, context, [bar](const std::string& name, std::size_t done, std::size_t total) {
        bar->show(name, done, total);
      });
  bar->end();
  if (!node) return tl::unexpected(node.error());
  signals.loaded();
  fmt::print("ready {}\n", (*node)->address());
  if (!(*node)->peer_address().empty()) fmt::print("peers {}\n", (*node)->peer_address());
  if (!(*node)->metrics_address().empty()) fmt::print("metrics {}\n", (*node)->metrics_address());
  std::fflush(stdout);
  for (auto told = Signals::Told::nothing; told != Signals::Told::stop;
       told = signals.wait(health_every_ms)) {
    if (told == Signals::Told::reload) reload(config.security, **node);
    if (auto healthy = (*node)->health(); !healthy) return healthy;
  }
  const bool drained = (*node)->drain(config.drain_ms);
  if (*children) (*children)->retire();
  if (!drained) {
    return fail(ErrorCode::unavailable,
                "streams still ran {} ms after the signal and were ended; raise node.drain_ms",
                config.drain_ms);
  }
  return {};
}

Result<void> run_node(const Options& options) {
  auto config = effective_config(options);
  if (!config) return tl::unexpected(config.error());
  if (options.print) {
    fmt::print("{}", print_config(*config));
    return {};
  }
  if (auto loaded = load_security(*config); !loaded) return loaded;
  return serve(*config);
}

}  // namespace

Command node_command(CLI::App& root) {
  CLI::App* app = add_command(
      root, "node", "Run a node: loads models and serves them until SIGTERM",
      "  sluice node --model models/SmolLM2-135M-Instruct-Q4_1.gguf\n"
      "  sluice node --config configs/local-cpu.toml --listen tcp://127.0.0.1:6000\n"
      "  sluice node --config configs/local-cpu.toml --print-config\n"
      "Prints `ready EP` on stdout when it serves. SIGTERM or SIGINT lets running streams finish\n"
      "and exits 0; a second signal stops at once. With --keys, SIGHUP reads the allow lists "
      "again.");
  auto options = std::make_shared<Options>();
  const auto add = [app](const std::string& name, auto& value, const std::string& does,
                         const std::string& type) {
    return app->add_option(name, value, does)->type_name(type);
  };
  add("--config", options->config, "Configuration; options below override it", "FILE");
  add("--model", options->model, "GGUF file, or folder of a safetensors model, to serve", "FILE");
  add("--listen", options->listen, "Where clients connect; port 0: any free one", "EP");
  add("--publish", options->publish, "Where subscribers connect", "EP");
  add("--keys", options->keys, "Secret key file from `sluice keygen`: speak CURVE only", "FILE");
  add("--clients", options->clients, "Allow list: which clients may connect, with --keys", "FILE");
  add("--metrics", options->metrics, "Where Prometheus finds /metrics: tcp://HOST:PORT", "EP");
  add("--roles", options->roles,
      "What runs here: front,tokenizer,engine,executor; the rest on others", "ROLE,...")
      ->delimiter(',');
  add("--peers-listen", options->peers_listen, "Where other nodes connect", "EP");
  add("--join", options->join, "Nodes to connect to, as their peers line says", "EP,...")
      ->delimiter(',');
  add("--name", options->name, "Of this node among others", "NAME");
  add("--collectives", options->collectives, "This host's address for what ranks exchange",
      "ADDRESS");
  add("--backend", options->backend, "What computes: auto, cpu, cuda", "NAME")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  add("--quantization", options->quantization,
      "fp8: cuda keeps the layers' matrices in 8 bits", "NAME")
      ->check(CLI::IsMember({"fp8"}));
  add("--kv-cache-dtype", options->kv_cache_dtype,
      "fp8: cuda keeps keys and values in 8 bits; auto: in 16", "NAME")
      ->check(CLI::IsMember({"auto", "fp8"}));
  add("--tp", options->tensor_parallel, "Executors that share the model, each with a part", "N");
  add("--isolate", options->isolate, "The executor in a process of its own: auto, on, off", "WORD")
      ->check(CLI::IsMember({"auto", "on", "off"}));
  add("--ranks", options->ranks, "How many of them run on this host; the rest join", "N");
  add("--device", options->device, "cuda: which of its devices", "N");
  add("--threads", options->threads, "0: one a core", "N");
  add("--weight-cache", options->weight_cache,
      "Where the cpu's packed weights are kept for the next start; \"\": nowhere", "DIR");
  add("--slots", options->slots, "Sequences running at once", "N");
  add("--context", options->context_tokens, "Longest sequence; 0: the model's own", "TOKENS");
  add("--chat-format", options->chat_format, "Instead of what the template is recognised as",
      "NAME");
  add("--site", options->site, "Where this node runs, in receipts", "NAME");
  add("--log-level", options->log_level, "trace, debug, info, warn, error, off", "LEVEL")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  app->add_flag("--insecure", options->insecure, "Allow plain tcp beyond loopback");
  app->add_flag("--print-config", options->print, "Print what would be in force, and exit");
  return {app, [options] { return run_node(*options); }};
}

}  // namespace sluice::cli
