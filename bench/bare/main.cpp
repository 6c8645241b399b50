// sluice-bench: what `sluice bench latency` measures, built without actors and sockets for hosts
// that have neither.
//
//   sluice-bench --model FILE [--threads N] [--prompt N] [--generate N] [--repetitions N] [--json]

#include <CLI/CLI.hpp>
#include <cstdio>

#include "bench/latency.hpp"

int main(int argc, char** argv) {
  sluice::bench::LatencyOptions options;
  bool json = false;
  CLI::App app("One sequence's speed, and the machine's limit beside it", "sluice-bench");
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--threads", options.threads, "threads; 0: one a core");
  app.add_option("--prompt", options.prompt_tokens, "prompt tokens");
  app.add_option("--generate", options.generated_tokens, "generated tokens");
  app.add_option("--repetitions", options.repetitions, "counted repetitions");
  app.add_flag("--json", json, "one JSON object on stdout");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto result = sluice::bench::measure_latency(options);
  if (!result) {
    std::fprintf(stderr, "sluice-bench: %s: %s\n",
                 std::string(sluice::to_string(result.error().code)).c_str(),
                 result.error().message.c_str());
    return 1;
  }
  std::printf("%s", (json ? to_json(*result) + "\n" : to_text(*result)).c_str());
  return 0;
}
