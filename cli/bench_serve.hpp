#pragma once
// sluice bench serve: load on a node that runs, with the field's figures.

#include "cli/command.hpp"

namespace sluice::cli {

/// Adds `serve` to `bench`.
Command bench_serve_command(CLI::App& bench);

}  // namespace sluice::cli
