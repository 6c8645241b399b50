#pragma once
// A subcommand: its options on the CLI11 tree, and what runs when it was chosen.

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <string_view>

#include "kernels/core.hpp"

namespace sluice::cli {

/// `run` is called once, after a parse that chose `app`. An error is printed by main as
/// `sluice: <code>: <message>`, and the exit code is 1.
struct Command {
  CLI::App* app = nullptr;
  std::function<Result<void>()> run;
};

Command node_command(CLI::App& root);
Command complete_command(CLI::App& root);
Command chat_command(CLI::App& root);
Command subscribe_command(CLI::App& root);
Command health_command(CLI::App& root);
Command inspect_command(CLI::App& root);
Command keygen_command(CLI::App& root);
Command bench_command(CLI::App& root);
Command top_command(CLI::App& root);
Command completion_command(CLI::App& root);

/// A subcommand whose `--help` ends with examples.
CLI::App* add_command(CLI::App& root, const std::string& name, const std::string& does,
                      const std::string& examples);

/// The wrong use of an option, found after the parse: `bad_request`, and exit code 2.
struct UsageError {
  std::string message;
};

/// What `--version` prints: version, commit, backends and whether each is usable.
std::string version_text();

}  // namespace sluice::cli
