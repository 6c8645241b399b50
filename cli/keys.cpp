#include "cli/keys.hpp"

#include "cli/command.hpp"

namespace sluice::cli {

void add_key_options(CLI::App& app, KeyOptions& options) {
  app.add_option("--server-key", options.server_key,
                 "For a node that speaks CURVE: its public key, or the file that has it")
      ->type_name("KEY|FILE");
  app.add_option("--key", options.key, "Then also: your secret key file, from `sluice keygen`")
      ->type_name("FILE");
}

Result<transport::CurveClient> read_keys(const KeyOptions& options) {
  transport::CurveClient out;
  if (options.server_key.empty() != options.key.empty())
    throw UsageError{"--server-key and --key go together: the node's public key, your secret one"};
  if (options.key.empty()) return out;
  auto server = transport::read_public_key(options.server_key);
  if (!server) return tl::unexpected(server.error());
  auto own = transport::read_secret_key(options.key);
  if (!own) return tl::unexpected(own.error());
  return transport::CurveClient{std::move(*server), std::move(*own)};
}

}  // namespace sluice::cli
