// sluice keygen: a pair of CURVE keys, for a node, a client or a router.

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.hpp"
#include "transport/curve_keys.hpp"

namespace sluice::cli {

namespace {

struct Options {
  std::string out = "sluice";
  bool json = false;
};

Result<void> keygen(const Options& options) {
  const auto keys = transport::generate_curve_keys();
  const auto files = transport::write_curve_keys(keys, options.out);
  if (!files) return tl::unexpected(files.error());
  if (options.json) {
    const nlohmann::ordered_json out = {{"public_key", keys.public_key},
                                        {"public_file", files->public_file},
                                        {"secret_file", files->secret_file}};
    fmt::print("{}\n", out.dump());
    return {};
  }
  fmt::print("public key  {}\n", keys.public_key);
  fmt::print("            also in {}: for the other side\n", files->public_file);
  fmt::print("secret key  in {}, which only you can read: never give it away\n",
             files->secret_file);
  return {};
}

}  // namespace

Command keygen_command(CLI::App& root) {
  CLI::App* app = add_command(root, "keygen", "Make a pair of CURVE keys",
                              "  sluice keygen --out node      # node.key and node.key_secret\n"
                              "  sluice keygen --out ann --json\n"
                              "The files are certificates as CZMQ and pyzmq's zmq.auth read them.\n"
                              "Nothing is overwritten.");
  auto options = std::make_shared<Options>();
  app->add_option("--out", options->out, "Name of the files, without their endings")
      ->type_name("NAME")
      ->capture_default_str();
  app->add_flag("--json", options->json, "One JSON object: the public key and both paths");
  return {app, [options] { return keygen(*options); }};
}

}  // namespace sluice::cli
