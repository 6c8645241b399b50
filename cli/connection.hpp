#pragma once
// Where a command's tokens come from: a node elsewhere, or one embedded in this process.

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <zmq.hpp>

#include "actors/node.hpp"
#include "cli/children.hpp"
#include "cli/keys.hpp"
#include "kernels/core.hpp"
#include "transport/client.hpp"

namespace sluice::cli {

struct ConnectionOptions {
  std::string connect;  ///< endpoint; empty: an embedded node
  KeyOptions keys;      ///< connected, to a node that speaks CURVE
  std::string model;    ///< embedded: a file; connected: one of the node's models, or empty
  actors::EngineConfig engine;
  std::string weight_cache;  ///< of the embedded node, as NodeConfig has it
};

/// `--connect`, `--model` and what an embedded node takes.
void add_connection_options(CLI::App& app, ConnectionOptions& options);

/// A client, and the node that it talks to if that is embedded.
class Connection {
 public:
  /// `UsageError` is thrown when there is neither a model nor an endpoint.
  static Result<std::unique_ptr<Connection>> open(const ConnectionOptions& options);
  ~Connection();

  transport::Client& client() { return *client_; }

  /// What `submit.model` says.
  const std::string& model() const { return model_; }

  /// What the node says of that model; nullptr when it does not have it.
  const transport::ModelInfo* model_info() const;

 private:
  Connection() = default;

  zmq::context_t context_;
  std::unique_ptr<ChildNodes> children_;  ///< end after the node that uses them
  std::unique_ptr<actors::Node> node_;
  std::unique_ptr<transport::Client> client_;
  std::string model_;
};

}  // namespace sluice::cli
