#pragma once
// The schema of the configuration file: every key there is.

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cli/config.hpp"

namespace sluice::cli {

using Field = std::variant<std::string*, std::vector<std::string>*, bool*, std::uint32_t*,
                           std::uint64_t*, double*>;

/// One key: where its value lives, what it means, what it may be.
template <class Owner>
struct Key {
  std::string_view section;
  std::string_view name;
  Field (*field)(Owner&);
  std::string_view doc;
  double min = 0;  ///< in the file's unit
  double max = 4294967295.0;
  std::uint64_t scale = 1;      ///< the file's unit in the field's unit
  std::string_view words = "";  ///< the only strings allowed, "auto|cpu"; empty: any.
};

using NodeKey = Key<Config>;
using EngineKey = Key<actors::EngineConfig>;

/// Entries of the allow lists.
struct ClientEntry {
  std::string public_key;
  transport::ClientGrant grant;
};
struct NodeEntry {
  std::string public_key;
  std::string name;
};
using ClientKey = Key<ClientEntry>;
using PeerKey = Key<NodeEntry>;

/// Keys of one section stand together.
const std::vector<NodeKey>& node_keys();

/// Keys of each [[engine]].
const std::vector<EngineKey>& engine_keys();

/// Keys of each [[client]] and each [[node]] of an allow list.
const std::vector<ClientKey>& client_keys();
const std::vector<PeerKey>& peer_keys();

}  // namespace sluice::cli
