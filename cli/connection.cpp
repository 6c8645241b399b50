#include "cli/connection.hpp"

#include "cli/children.hpp"
#include "cli/command.hpp"
#include "cli/terminal.hpp"
#include "cli/user_folders.hpp"

namespace sluice::cli {

void add_connection_options(CLI::App& app, ConnectionOptions& options) {
  options.engine.slots = 8;  // an embedded node serves one person
  options.weight_cache = cache_folder();
  app.add_option("--connect", options.connect,
                 "Endpoint of a running node, as its ready line says; several with commas between: "
                 "where one is lost, the next goes on")
      ->type_name("EP");
  add_key_options(app, options.keys);
  app.add_option("--model", options.model,
                 "GGUF file or folder of a safetensors model, to run in this process; with "
                 "--connect, one of the node's models")
      ->type_name("FILE");
  app.add_option("--backend", options.engine.backend, "What computes: auto, cpu, cuda")
      ->type_name("NAME")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--quantization", options.engine.quantization,
                 "Of the embedded node: fp8 keeps the layers' matrices in 8 bits, on cuda")
      ->type_name("NAME")
      ->check(CLI::IsMember({"fp8"}));
  app.add_option("--kv-cache-dtype", options.engine.kv_cache_dtype,
                 "Of the embedded node: fp8 keeps keys and values in 8 bits, on cuda; auto: in 16")
      ->type_name("NAME")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "fp8"}));
  app.add_option("--tp", options.engine.tensor_parallel,
                 "Of the embedded node: executors that share the model, each a process")
      ->type_name("N");
  app.add_option("--threads", options.engine.threads, "Of the embedded node; 0: one a core")
      ->type_name("N");
  app.add_option("--weight-cache", options.weight_cache,
                 "Of the embedded node: where the cpu's packed weights are kept for the next "
                 "start; \"\": nowhere")
      ->type_name("DIR")
      ->capture_default_str();
  app.add_option("--context", options.engine.context_tokens,
                 "Longest sequence of the embedded node; 0: the model's own")
      ->type_name("TOKENS");
  app.add_option("--chat-format", options.engine.chat_format,
                 "Instead of what the file's template is recognised as")
      ->type_name("NAME");
}

Result<std::unique_ptr<Connection>> Connection::open(const ConnectionOptions& options) {
  auto connection = std::unique_ptr<Connection>(new Connection);
  transport::ClientConfig client;
  client.connect = options.connect;
  auto curve = read_keys(options.keys);
  if (!curve) return tl::unexpected(curve.error());
  client.curve = std::move(*curve);
  if (options.connect.empty() && !options.keys.key.empty()) {
    throw UsageError{"--server-key and --key are for --connect EP"};
  }
  if (options.connect.empty()) {
    if (options.model.empty()) {
      throw UsageError{"give --model FILE to run a model here, or --connect EP for a running node"};
    }
    Config embedded;
    auto& config = embedded.node;
    config.endpoint.listen = "inproc://sluice";
    config.log_level = "warn";  // its lines would land between the user's
    config.engines = {options.engine};
    config.weight_cache = options.weight_cache;
    config.engines.front().model = options.model;
    auto children = ChildNodes::start(embedded);
    if (!children) return tl::unexpected(children.error());
    connection->children_ = std::move(*children);
    const auto bar = std::make_shared<ProgressBar>();
    auto node = actors::Node::start(std::move(config), connection->context_,
                                    [bar](const std::string& name, std::size_t done,
                                          std::size_t total) { bar->show(name, done, total); });
    bar->end();
    if (!node) return tl::unexpected(node.error());
    connection->node_ = std::move(*node);
    client.connect = connection->node_->address();
  } else {
    connection->model_ = options.model;
  }
  auto connected = transport::Client::connect(client, &connection->context_);
  if (!connected) return tl::unexpected(connected.error());
  connection->client_ = std::move(*connected);
  return connection;
}

Connection::~Connection() {
  if (children_) children_->retire();
}

const transport::ModelInfo* Connection::model_info() const {
  const auto& models = client_->welcome().models;
  if (model_.empty() && models.size() == 1) return &models.front();
  for (const transport::ModelInfo& info : models) {
    if (info.name == model_) return &info;
  }
  return nullptr;
}

}  // namespace sluice::cli
