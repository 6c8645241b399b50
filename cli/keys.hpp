#pragma once
// How a command proves who it is to a node that speaks CURVE.

#include <CLI/CLI.hpp>
#include <string>

#include "kernels/core.hpp"
#include "transport/curve_keys.hpp"

namespace sluice::cli {

struct KeyOptions {
  std::string server_key;  ///< the node's public key, or a file that has it; empty: plain
  std::string key;         ///< this client's secret key file
};

/// `--server-key` and `--key`.
void add_key_options(CLI::App& app, KeyOptions& options);

/// Both keys read. `UsageError` is thrown when one option is given without the other.
Result<transport::CurveClient> read_keys(const KeyOptions& options);

}  // namespace sluice::cli
