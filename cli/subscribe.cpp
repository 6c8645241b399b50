// sluice subscribe: follows somebody's stream.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.hpp"
#include "cli/generation.hpp"
#include "cli/keys.hpp"
#include "cli/terminal.hpp"
#include "transport/client.hpp"

namespace sluice::cli {

namespace {

struct Options {
  KeyOptions keys;
  std::string connect;
  std::string stream;
  std::uint32_t from = 0;
  bool json = false;
};

/// One line a piece: what a script follows.
std::string to_json(const transport::ClientEvent& event, std::uint32_t first_index) {
  nlohmann::ordered_json out;
  if (event.done) {
    out["type"] = "done";
    auto reasons = nlohmann::ordered_json::array();
    for (const auto reason : event.done->finish) reasons.push_back(transport::to_string(reason));
    out["finish_reasons"] = std::move(reasons);
    out["completion_tokens"] = event.done->receipt.completion_tokens;
  } else {
    out["type"] = "chunk";
    out["choice"] = event.choice;
    out["index"] = first_index;
    out["tokens"] = event.tokens;
    out["text"] = event.text;
    if (!event.tokens.empty()) out["chain"] = transport::to_hex(event.chain);
  }
  return out.dump();
}

Result<void> subscribe(const Options& options) {
  const auto stream = transport::stream_from_hex(options.stream);
  if (!stream) {
    throw UsageError{fmt::format("'{}' is no stream id: 32 hexadecimal digits", options.stream)};
  }
  transport::ClientConfig config;
  config.connect = options.connect;
  auto curve = read_keys(options.keys);
  if (!curve) return tl::unexpected(curve.error());
  config.curve = std::move(*curve);
  auto client = transport::Client::connect(config);
  if (!client) return tl::unexpected(client.error());
  if (auto done = (*client)->subscribe(*stream, options.from); !done) return done;
  InterruptGuard interrupts;
  std::vector<std::uint32_t> next_index;
  while (!interrupts.take()) {
    const auto next = (*client)->next(std::chrono::milliseconds(50));
    if (!next || next->stream != *stream) continue;
    const transport::ClientEvent& event = next->event;
    if (event.failed) return tl::unexpected(event.failed->error);
    if (event.choice >= next_index.size()) next_index.resize(event.choice + 1, options.from);
    if (!options.json) {
      fmt::print("{}{}", event.text, event.done ? "\n" : "");
    } else if (!event.tokens.empty() || !event.text.empty() || event.done) {
      transport::ClientEvent chunk = event;
      chunk.done.reset();
      const bool has_chunk = !event.tokens.empty() || !event.text.empty();
      if (has_chunk) fmt::print("{}\n", to_json(chunk, next_index[event.choice]));
      if (event.done) fmt::print("{}\n", to_json(event, 0));
    }
    std::fflush(stdout);
    next_index[event.choice] += static_cast<std::uint32_t>(event.tokens.size());
    if (event.done) return {};
  }
  return fail(ErrorCode::cancelled, "stopped by Ctrl-C; the stream goes on without this reader");
}

}  // namespace

Command subscribe_command(CLI::App& root) {
  CLI::App* app = add_command(
      root, "subscribe", "Follow a stream, replaying what is held of it",
      "  sluice subscribe --connect tcp://127.0.0.1:5570 0123456789abcdef0123456789abcdef\n"
      "  sluice subscribe --connect tcp://127.0.0.1:5570 --from 100 --json STREAM");
  auto options = std::make_shared<Options>();
  app->add_option("--connect", options->connect, "Endpoint of the node that holds it")
      ->type_name("EP")
      ->required();
  add_key_options(*app, options->keys);
  app->add_option("stream", options->stream, "Its id, 32 hexadecimal digits")
      ->type_name("STREAM")
      ->required();
  app->add_option("--from", options->from, "Index of the first token wanted")->type_name("N");
  app->add_flag("--json", options->json, "One JSON object a line");
  return {app, [options] { return subscribe(*options); }};
}

}  // namespace sluice::cli
