#pragma once
// What a node's configuration must be before anything is started. Pure.

#include <map>
#include <string>

#include "actors/node.hpp"

namespace sluice::actors {

/// Other nodes are dialed, or may dial this one.
bool has_peers(const NodeConfig& config);

/// `bad_request` and `unsupported` name what cannot be and the remedy: engines, roles, addresses in
/// plain text, keys.
Result<void> check(const NodeConfig& config);

/// A key that could play both parts would make the two lists one: `bad_request`.
Result<void> check_lists(const transport::ClientGrants& clients,
                         const std::map<transport::CurveKey, std::string>& nodes);

}  // namespace sluice::actors
