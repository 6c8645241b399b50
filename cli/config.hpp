#pragma once
// The node's configuration file: one table of every key, what it means and what it may be.

#include <string>
#include <string_view>

#include "actors/node.hpp"
#include "kernels/core.hpp"

namespace sluice::cli {

/// Paths; none of what is in these files is ever printed.
struct SecurityFiles {
  std::string keys;       ///< secret key file, from `sluice keygen`
  std::string clients;    ///< allow list, [[client]]
  std::string node_keys;  ///< secret key file; empty: `keys`
  std::string nodes;      ///< allow list, [[node]]
};

struct Config {
  Config();  ///< weights are kept in $XDG_CACHE_HOME/sluice or ~/.cache/sluice

  actors::NodeConfig node;
  SecurityFiles security;
  std::uint32_t drain_ms = 30'000;  ///< at SIGTERM: how long running streams may take to finish
};

/// `io` when the file cannot be read; else as `parse_config`.
Result<Config> read_config(const std::string& path);

/// TOML text; `source` names it in messages. `bad_request` says file and line of a key that is
/// unknown (with the nearest known one), of the wrong type or out of its range.
Result<Config> parse_config(std::string_view text, const std::string& source);

/// Fills `node.security` from the files that are named: keys and allow lists. `io`, `bad_file`,
/// `unauthorized` (a secret file that others can read), or `bad_request` with file and line.
Result<void> load_security(Config& config);

/// The allow lists alone, as they are now: for a node that runs.
Result<void> load_allow_lists(const SecurityFiles& files, actors::SecurityConfig& into);

/// What is in force, as a TOML file with every key and its documentation. Parsed, it gives the
/// same configuration again.
std::string print_config(const Config& config);

}  // namespace sluice::cli
