#pragma once
// A whole node in one object: actor system, engines, front and I/O thread. What programs start.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/backends.hpp"
#include "kernels/core.hpp"
#include "transport/curve_keys.hpp"
#include "transport/endpoint_config.hpp"
#include "transport/node_protocol.hpp"
#include "transport/peer_config.hpp"
#include "transport/session.hpp"
#include "transport/stream.hpp"

namespace zmq {
class context_t;
}

namespace sluice::actors {

using transport::SiteConfig;

struct EngineConfig {
  std::string name;                   ///< what `submit.model` picks; empty: the file's own name
  std::string model;                  ///< path that open_checkpoint takes
  std::string backend = "auto";       ///< auto, cpu, cuda
  std::uint32_t device = 0;           ///< cuda: which of its devices
  std::string quantization;           ///< of weights as they load: "fp8" on cuda, or none
  /// Of keys and values: "fp8" on cuda, or "auto", which is 16 bits.
  std::string kv_cache_dtype = "auto";
  std::uint32_t tensor_parallel = 1;  ///< executors that share the model
  std::uint32_t ranks = 0;    ///< how many of them this node starts; 0: all where the batcher
                              ///< is, one elsewhere
  /// Whether the executor runs in a process of its own, so that a lost device costs that alone:
  /// "on", "off", or "auto" for a program that starts such processes to decide (else off).
  std::string isolate = "auto";
  std::uint32_t threads = 0;  ///< 0: one a core
  std::uint32_t slots = 64;   ///< sequences running at once
  std::uint32_t context_tokens = 0;  ///< 0: the model's own, as far as the KV pool holds one
  std::uint64_t kv_bytes = 0;        ///< KV pool; 0: as much as `plan_pool` finds room for
  std::uint32_t step_rows = 512;     ///< rows of a step
  std::uint32_t itl_target_ms = 0;   ///< of a step that reads prompts while others decode; 0: auto
  bool prefix_cache = true;          ///< blocks of a prompt seen before are used again
  std::uint32_t queue = 1024;        ///< waiting requests; beyond: `overloaded`
  std::string chat_format;           ///< overrides what the file's template is recognised as
};

/// What an engine is called where nobody says: the model file's name without its ending.
std::string engine_title(const std::string& model);

/// CURVE towards clients and between nodes. Without keys: plain.
struct SecurityConfig {
  transport::CurveKeyPair keys;                      ///< what clients know the node by
  transport::ClientGrants clients;                   ///< who may connect, and what each may do
  transport::CurveKeyPair node_keys;                 ///< what other nodes know it by
  std::map<transport::CurveKey, std::string> nodes;  ///< other nodes' public keys to their names

  bool on() const { return !keys.secret_key.empty(); }             ///< towards clients
  bool nodes_on() const { return !node_keys.secret_key.empty(); }  ///< towards nodes
};

/// Domains of the guard.
inline constexpr const char* clients_domain = "clients";
inline constexpr const char* nodes_domain = "nodes";

struct NodeConfig {
  /// What runs here of "front" (session, streamers), "tokenizer", "engine" (batcher), "executor"
  /// (device). Empty: all. What does not, other nodes offer.
  std::vector<std::string> roles;
  transport::PeerConfig peers;
  /// The process ends when an executor of it does: one that another process starts again.
  bool ends_with_executor = false;
  transport::EndpointConfig endpoint;
  transport::StreamConfig stream;
  SiteConfig site;
  std::vector<EngineConfig> engines;
  std::uint32_t tokenizer_threads = 1;
  std::uint32_t streamers = 1;
  std::string weight_cache;        ///< folder of packed weights (cpu); empty: kept nowhere
  std::uint64_t weight_cache_bytes = std::uint64_t{5} << 30;  ///< most that it may hold
  std::string metrics_listen;      ///< where Prometheus finds /metrics; empty: nowhere
  SecurityConfig security;         ///< `endpoint.curve` and `peers.curve` are made of it
  bool insecure = false;           ///< allow plain tcp beyond loopback
  std::string log_level = "info";  ///< trace, debug, info, warn, error, off
  std::string log_file;            ///< empty: stderr
  bool log_prompts = false;        ///< for debugging only
  /// Makes an engine's backend; empty: by `EngineConfig::backend`. Benches and tests pass one.
  std::function<Result<std::unique_ptr<kernels::Backend>>(const EngineConfig&, kernels::Completion)>
      make_backend;
  kernels::BackendSearch backends;  ///< where drivers and plugins are; tests name other places
};

/// Whether the node runs what a role names.
bool plays(const NodeConfig& config, std::string_view role);

/// Called while an engine's model loads: its name, bytes done, bytes in all.
using LoadProgress = std::function<void(const std::string&, std::size_t, std::size_t)>;

class Node {
 public:
  /// Loads every engine's model, binds, serves. Returns when ready, or with the first error: `io`,
  /// `bad_file`, `unsupported`, `out_of_memory`, `bad_request` for a configuration that cannot be.
  static Result<std::unique_ptr<Node>> start(NodeConfig config, zmq::context_t& context,
                                             const LoadProgress& progress = {});
  ~Node();  ///< stops at once; unfinished streams end with `unavailable`

  /// Where clients connect, as bound; without a front where nodes connect, or else its name.
  const std::string& address() const;
  const std::string& peer_address() const;     ///< where other nodes connect; empty: nowhere
  const std::string& publish_address() const;  ///< where subscribers connect

  /// Where metrics are served, as bound; empty when they are not.
  std::string metrics_address() const;

  /// Replaces the allow lists. Who is no longer in them is refused at once: connections are closed,
  /// streams stopped, sessions with nodes ended. `bad_request` when a key stands in both; the old
  /// ones stay in force then. One thread at a time.
  Result<void> allow(transport::ClientGrants clients,
                     std::map<transport::CurveKey, std::string> nodes);

  /// A line in the node's log: something about it that only its program knows.
  void log_failure(std::string_view event, const Error& why);

  /// Refuses new streams, lets running ones finish. Returns whether they did within `timeout_ms`.
  bool drain(std::uint32_t timeout_ms);

  /// Whether it still serves; else why not. Any thread.
  Result<void> health() const;

 private:
  struct State;
  explicit Node(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice::actors
