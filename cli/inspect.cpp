#include <fmt/ranges.h>

#include <algorithm>

#include "model/inspect.hpp"

#include <nlohmann/json.hpp>

#include "cli/command.hpp"

namespace sluice::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string file;
  bool json = false;
  bool tensors = false;
};

Json to_json(const model::InspectValue& value) {
  return std::visit([](const auto& held) { return Json(held); }, value);
}

std::string to_text(const model::InspectEntry& entry) {
  if (!entry.array) return to_json(entry.values.front()).dump();
  std::string text = fmt::format("{} x {} [", entry.count, entry.type);
  for (const auto& value : entry.values) text += to_json(value).dump() + ", ";
  if (!entry.values.empty()) text.resize(text.size() - 2);
  return text + (entry.count > entry.values.size() ? ", ...]" : "]");
}

std::string shape_text(const model::InspectTensor& tensor) {
  return fmt::format("{}", fmt::join(tensor.shape, " x "));
}

Json config_json(const model::ModelConfig& config) {
  return {{"architecture", config.architecture},
          {"layers", config.layers},
          {"hidden", config.hidden},
          {"feed_forward", config.feed_forward},
          {"heads", config.heads.heads},
          {"kv_heads", config.heads.kv_heads},
          {"head_dim", config.heads.head_dim},
          {"vocabulary", config.vocabulary},
          {"context_tokens", config.context_tokens},
          {"window", config.window},
          {"local_layers", std::count(config.local.begin(), config.local.end(), true)}};
}

void print_json(const model::FileDescription& file) {
  Json metadata = Json::object();
  for (const auto& entry : file.metadata) {
    if (!entry.array) {
      metadata[entry.key] = to_json(entry.values.front());
      continue;
    }
    Json first = Json::array();
    for (const auto& value : entry.values) first.push_back(to_json(value));
    metadata[entry.key] = {{"type", entry.type}, {"count", entry.count}, {"first", first}};
  }
  Json tensors = Json::array();
  for (const auto& tensor : file.tensors) {
    tensors.push_back({{"name", tensor.name},
                       {"format", tensor.format},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes}});
  }
  const Json json{{"path", file.path},
                  {"format", file.format},
                  {"version", file.version == 0 ? Json() : Json(file.version)},
                  {"file_bytes", file.file_bytes},
                  {"parameters", file.parameters},
                  {"tensor_bytes", file.tensor_bytes},
                  {"fingerprint", file.fingerprint},
                  {"config", file.config ? config_json(*file.config) : Json()},
                  {"refusal", file.refusal ? Json(file.refusal->message) : Json()},
                  {"metadata", metadata},
                  {"tensors", tensors}};
  fmt::print("{}\n", json.dump());
}

void print_text(const model::FileDescription& file, bool tensors) {
  const std::string version = file.version == 0 ? "" : fmt::format(" {}", file.version);
  fmt::print("{}: {}{}, {:.1f} MB, {:.1f} M parameters in {} tensors\n", file.path, file.format,
             version, static_cast<double>(file.file_bytes) / 1e6,
             static_cast<double>(file.parameters) / 1e6, file.tensors.size());
  for (const auto& format : file.formats) {
    fmt::print("  {:<6} {:>5} tensors {:>10.1f} MB\n", format.format, format.tensors,
               static_cast<double>(format.bytes) / 1e6);
  }
  if (file.config) fmt::print("model: {}\n", config_json(*file.config).dump());
  fmt::print("{}\n", file.refusal ? "cannot be run: " + file.refusal->message : "can be run");
  fmt::print("metadata:\n");
  for (const auto& entry : file.metadata) fmt::print("  {} = {}\n", entry.key, to_text(entry));
  if (!tensors) return;
  fmt::print("tensors:\n");
  for (const auto& tensor : file.tensors) {
    fmt::print("  {:<40} {:<5} {}\n", tensor.name, tensor.format, shape_text(tensor));
  }
}

Result<void> inspect(const Options& options) {
  const auto file = model::describe_file(options.file);
  if (!file) return tl::unexpected(file.error());
  if (options.json) {
    print_json(*file);
  } else {
    print_text(*file, options.tensors);
  }
  return {};
}

}  // namespace

Command inspect_command(CLI::App& root) {
  CLI::App* app = add_command(root, "inspect", "Say what a model's files hold and if it can run",
                              "  sluice inspect models/SmolLM2-135M-Instruct-Q4_1.gguf\n"
                              "  sluice inspect --tensors FOLDER\n"
                              "  sluice inspect --json FILE");
  auto options = std::make_shared<Options>();
  app->add_option("FILE", options->file, "A GGUF file, or the folder of a safetensors model")
      ->required();
  app->add_flag("--tensors", options->tensors, "Every tensor too");
  app->add_flag("--json", options->json, "All of it as one JSON object");
  return {app, [options] { return inspect(*options); }};
}

}  // namespace sluice::cli
