// The binary: one tree of commands, one way to report what went wrong.

#include <csignal>
#include <cstdio>
#include <vector>

#include "cli/command.hpp"

namespace sluice::cli {

CLI::App* add_command(CLI::App& root, const std::string& name, const std::string& does,
                      const std::string& examples) {
  CLI::App* app = root.add_subcommand(name, does);
  app->footer("Examples:\n" + examples);
  return app;
}

namespace {

void report(std::string_view code, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "sluice: {}: {}\n", code, message);
}

/// The command line up to the subcommand that was understood, for the hint.
std::string chosen_name(const CLI::App& root) {
  std::string name = "sluice";
  for (const CLI::App* app : root.get_subcommands()) name += " " + app->get_name();
  return name;
}

int run(int argc, char** argv) {
  CLI::App root{"Sluice: streams language models to any number of ZeroMQ clients.", "sluice"};
  root.require_subcommand(1);
  root.get_formatter()->column_width(34);
  root.set_version_flag("--version", version_text, "Print version, commit and backends");
  const std::vector<Command> commands = {
      node_command(root),       complete_command(root), chat_command(root), subscribe_command(root),
      health_command(root),     inspect_command(root),  top_command(root),  bench_command(root),
      completion_command(root), keygen_command(root),
  };
  const auto wrong_usage = [&](const std::string& message) {
    report(to_string(ErrorCode::bad_request), message);
    fmt::print(stderr, "Run `{} --help` for what it takes.\n", chosen_name(root));
    return 2;
  };
  try {
    root.parse(argc, argv);
    for (const Command& command : commands) {
      if (!command.app->parsed()) continue;
      if (const auto done = command.run(); !done) {
        report(to_string(done.error().code), done.error().message);
        return 1;
      }
      return 0;
    }
  } catch (const CLI::Success& help) {
    return root.exit(help);
  } catch (const CLI::RequiredError& error) {
    const bool unknown = root.get_subcommands().empty() && argc > 1;
    return wrong_usage(unknown ? fmt::format("there is no command '{}'", argv[1]) : error.what());
  } catch (const CLI::ParseError& error) {
    return wrong_usage(error.what());
  } catch (const UsageError& error) {
    return wrong_usage(error.message);
  } catch (const std::exception& error) {
    report(to_string(ErrorCode::internal), error.what());
    return 1;
  }
  return 2;
}

}  // namespace
}  // namespace sluice::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that left is an error of write, not our death
  return sluice::cli::run(argc, argv);
}
