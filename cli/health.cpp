// sluice health: whether a node serves, for people, scripts and probes.

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.hpp"
#include "cli/keys.hpp"
#include "transport/client.hpp"

namespace sluice::cli {

namespace {

struct Options {
  KeyOptions keys;
  std::string connect;
  std::uint32_t timeout_ms = 5000;
  bool json = false;
  bool stats = false;
};

void print_json(const transport::Welcome& welcome, const transport::Health& health,
                const transport::Stats& stats) {
  nlohmann::ordered_json out;
  out["ready"] = health.ready;
  out["why"] = health.why;
  out["server"] = welcome.server;
  out["site"] = welcome.site;
  out["publish"] = welcome.publish;
  out["models"] = nlohmann::ordered_json::array();
  for (const transport::ModelInfo& model : welcome.models) {
    out["models"].push_back({{"name", model.name},
                             {"numerics", model.numerics},
                             {"backend", model.backend},
                             {"chat_format", model.chat_format},
                             {"context_tokens", model.context_tokens},
                             {"vocabulary", model.vocabulary}});
  }
  out["stats"] = nlohmann::ordered_json::object();
  for (const auto& [name, value] : stats.values) out["stats"][name] = value;
  fmt::print("{}\n", out.dump());
}

Result<void> health(const Options& options) {
  const std::chrono::milliseconds timeout(options.timeout_ms);
  transport::ClientConfig config;
  config.connect = options.connect;
  config.connect_timeout = timeout;
  auto curve = read_keys(options.keys);
  if (!curve) return tl::unexpected(curve.error());
  config.curve = std::move(*curve);
  auto client = transport::Client::connect(config);
  if (!client) return tl::unexpected(client.error());
  const auto state = (*client)->health(timeout);
  if (!state) return tl::unexpected(state.error());
  transport::Stats stats;
  if (options.stats || options.json) {
    auto asked = (*client)->stats(timeout);
    if (!asked) return tl::unexpected(asked.error());
    stats = std::move(*asked);
  }
  const transport::Welcome& welcome = (*client)->welcome();
  if (options.json) {
    print_json(welcome, *state, stats);
  } else {
    if (state->ready) fmt::print("ready, at {}\n", welcome.site);
    for (const transport::ModelInfo& model : welcome.models) {
      fmt::print("  {} on {}, {} tokens of context, {}\n", model.name, model.backend,
                 model.context_tokens,
                 model.chat_format.empty() ? "no chat" : "chat as " + model.chat_format);
    }
    for (const auto& [name, value] : stats.values) fmt::print("  {} {}\n", name, value);
  }
  if (!state->ready) return fail(ErrorCode::unavailable, "not ready: {}", state->why);
  return {};
}

}  // namespace

Command health_command(CLI::App& root) {
  CLI::App* app = add_command(root, "health", "Say whether a node serves; exit 0 when it does",
                              "  sluice health --connect tcp://127.0.0.1:5570\n"
                              "  sluice health --connect tcp://127.0.0.1:5570 --json");
  auto options = std::make_shared<Options>();
  app->add_option("--connect", options->connect, "Endpoint of the node")
      ->type_name("EP")
      ->required();
  add_key_options(*app, options->keys);
  app->add_option("--timeout-ms", options->timeout_ms, "How long to wait for an answer")
      ->type_name("MS")
      ->capture_default_str();
  app->add_flag("--stats", options->stats, "Counters and gauges too");
  app->add_flag("--json", options->json, "All of it as one JSON object");
  return {app, [options] { return health(*options); }};
}

}  // namespace sluice::cli
