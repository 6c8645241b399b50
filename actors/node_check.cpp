#include "actors/node_check.hpp"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <tuple>

namespace sluice::actors {
namespace {

/// Promise 6 of the design: what leaves the host must be encrypted and authenticated.
bool is_local(const std::string& endpoint) {
  return endpoint.empty() || !endpoint.starts_with("tcp://") ||
         endpoint.starts_with("tcp://127.") || endpoint.starts_with("tcp://localhost:") ||
         endpoint.starts_with("tcp://[::1]");
}

constexpr std::string_view role_words[] = {"front", "tokenizer", "engine", "executor"};

Result<void> check_roles(const NodeConfig& config) {
  for (const auto& engine : config.engines) {
    if (engine.isolate != "on") continue;
    if (!has_peers(config))
      return fail(ErrorCode::bad_request,
                  "engine {} is isolated and no process can join this one: set "
                  "peers.local_listen, or start it with `sluice node`",
                  engine.model);
  }
  for (const auto& role : config.roles)
    if (std::ranges::find(role_words, role) == std::end(role_words))
      return fail(ErrorCode::bad_request, "there is no role '{}': choose of {}", role,
                  fmt::join(role_words, ", "));
  for (const auto role : role_words)
    if (!plays(config, role) && !has_peers(config))
      return fail(ErrorCode::bad_request,
                  "this node is no {} and knows no node that is: set peers.listen or peers.join",
                  role);
  return {};
}

/// What nodes say to each other is prompts and tokens: it goes beyond loopback as safely as what
/// clients say.
Result<void> check_peer_addresses(const NodeConfig& config) {
  const auto& [peers, security] = std::tie(config.peers, config.security);
  if (!peers.local_listen.empty() && !peers.local_listen.starts_with("ipc://"))
    return fail(ErrorCode::bad_request,
                "peers.local_listen is for processes of this host and speaks in plain text: write "
                "ipc://PATH, not {}",
                peers.local_listen);
  if (!security.nodes_on() && !config.insecure && !is_local(peers.listen))
    return fail(
        ErrorCode::bad_request,
        "{} can be reached from other nodes in plain text: listen on 127.0.0.1 or ipc, give "
        "this node a key (security.node_keys and security.nodes), or write insecure = true",
        peers.listen);
  for (const auto& joined : peers.join) {
    const transport::PeerAddress address(joined);
    if (address.name.empty()) {
      if (!config.insecure && !is_local(address.endpoint))
        return fail(
            ErrorCode::bad_request,
            "{} would be spoken to in plain text: write \"{} NAME\" in peers.join, with the "
            "name that security.nodes has for it, or insecure = true",
            address.endpoint, address.endpoint);
    } else if (!security.nodes_on()) {
      return fail(ErrorCode::bad_request,
                  "node {} is joined by name, but this node has no key to show: write "
                  "security.node_keys and security.nodes",
                  address.name);
    } else if (std::ranges::none_of(
                   security.nodes, [&](const auto& node) { return node.second == address.name; })) {
      return fail(ErrorCode::bad_request,
                  "peers.join names node {}, of which security.nodes has no key", address.name);
    }
  }
  if (security.nodes_on() && !peers.listen.empty() && security.nodes.empty())
    return fail(ErrorCode::bad_request,
                "security.nodes is missing: no node could join this one at {}, as it has keys",
                peers.listen);
  const bool by_key =
      !peers.listen.empty() || std::ranges::any_of(peers.join, [](const std::string& joined) {
        return !transport::PeerAddress(joined).name.empty();
      });
  if (security.nodes_on() && by_key && peers.name.empty())
    return fail(ErrorCode::bad_request,
                "peers.name is missing: other nodes know this one's key under a name, and take it "
                "under that one only");
  return {};
}

Result<void> check_addresses(const NodeConfig& config) {
  const auto& security = config.security;
  for (const auto& address : {config.endpoint.listen, config.endpoint.publish}) {
    if (!security.on() && !config.insecure && !is_local(address))
      return fail(
          ErrorCode::bad_request,
          "{} can be reached from other hosts in plain text: listen on 127.0.0.1 or ipc, give "
          "the node keys (security.keys and security.clients), or write insecure = true",
          address);
    if (security.on() && address.starts_with("inproc://"))
      return fail(ErrorCode::bad_request,
                  "{}: nobody proves a key within a process; leave security.keys out, or listen "
                  "on tcp or ipc",
                  address);
  }
  const auto& metrics = config.metrics_listen;
  if (!config.insecure && !is_local(metrics))
    return fail(ErrorCode::bad_request,
                "{} can be reached from other hosts in plain text: listen on 127.0.0.1, or write "
                "insecure = true",
                metrics);
  return check_peer_addresses(config);
}

}  // namespace

bool plays(const NodeConfig& config, std::string_view role) {
  return config.roles.empty() || std::ranges::find(config.roles, role) != config.roles.end();
}

bool has_peers(const NodeConfig& config) {
  const auto& peers = config.peers;
  return !peers.listen.empty() || !peers.local_listen.empty() || !peers.join.empty();
}

Result<void> check_lists(const transport::ClientGrants& clients,
                         const std::map<transport::CurveKey, std::string>& nodes) {
  for (const auto& [key, name] : nodes)
    if (const auto found = clients.find(key); found != clients.end())
      return fail(ErrorCode::bad_request,
                  "key {} is client {}'s and node {}'s: give each its own, from `sluice keygen`",
                  key, found->second.name, name);
  return {};
}

Result<void> check(const NodeConfig& config) {
  if (config.engines.empty())
    return fail(ErrorCode::bad_request, "the node has no engine: name a model with --model FILE");
  if (auto checked = check_addresses(config); !checked) return checked;
  if (auto checked = check_lists(config.security.clients, config.security.nodes); !checked)
    return checked;
  for (std::size_t i = 0; i < config.engines.size(); ++i)
    for (std::size_t j = i + 1; j < config.engines.size(); ++j)
      if (config.engines[i].name == config.engines[j].name &&
          config.engines[i].model == config.engines[j].model)
        return fail(
            ErrorCode::bad_request, "two engines are both called '{}': give each its own name",
            config.engines[i].name.empty() ? config.engines[i].model : config.engines[i].name);
  return check_roles(config);
}

}  // namespace sluice::actors
