// sluice-bench: what `sluice bench latency` measures, built without actors and sockets for hosts
// that have neither; so its options are read by the C library.

#include <fmt/format.h>
#include <getopt.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <optional>

#include "bench/latency.hpp"
#include "kernels/backends.hpp"

namespace {

using namespace sluice;

constexpr const char* usage =
    "One sequence's speed, and the machine's limit beside it.\n"
    "Usage: sluice-bench --model FILE [options]\n"
    "  --model FILE        GGUF file\n"
    "  --backend NAME      auto, cpu or cuda\n"
    "  --device N          which of the backend's devices\n"
    "  --threads N         the cpu's threads; 0: one a core\n"
    "  --prompt N          prompt tokens\n"
    "  --generate N        generated tokens\n"
    "  --repetitions N     counted repetitions\n"
    "  --json              one JSON object on stdout\n"
    "  --backends          list the backends that this machine can use, and why not\n"
    "  --help              this text\n";

/// Exit code 2 and where to read on.
int wrong_usage(const std::string& why) {
  if (!why.empty()) fmt::print(stderr, "sluice-bench: bad_request: {}\n", why);
  fmt::print(stderr, "Run `sluice-bench --help` for what it takes.\n");
  return 2;
}

std::optional<std::uint32_t> read_count(const char* text) {
  std::uint32_t count = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, count);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return count;
}

int measure(const bench::LatencyOptions& options, bool json) {
  const auto result = bench::measure_latency(options);
  if (!result) {
    fmt::print(stderr, "sluice-bench: {}: {}\n", to_string(result.error().code),
               result.error().message);
    return 1;
  }
  fmt::print("{}", json ? bench::to_json(*result) + "\n" : bench::to_text(*result));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  enum Option {
    model = 1, json, backend, backends, help, device, threads, prompt, generate, repetitions
  };
  constexpr option options[] = {{"model", required_argument, nullptr, model},
                                {"threads", required_argument, nullptr, threads},
                                {"prompt", required_argument, nullptr, prompt},
                                {"generate", required_argument, nullptr, generate},
                                {"repetitions", required_argument, nullptr, repetitions},
                                {"json", no_argument, nullptr, json},
                                {"backend", required_argument, nullptr, backend},
                                {"device", required_argument, nullptr, device},
                                {"backends", no_argument, nullptr, backends},
                                {"help", no_argument, nullptr, help},
                                {}};
  bench::LatencyOptions latency;
  bool as_json = false;
  for (int index = 0, found; (found = getopt_long(argc, argv, "", options, &index)) != -1;) {
    switch (found) {
      case model:
        latency.model = optarg;
        continue;
      case backend:
        latency.backend = optarg;
        continue;
      case json:
        as_json = true;
        continue;
      case backends:
        for (const auto& backend : kernels::list_backends())
          fmt::print("{}\n", kernels::to_text(backend));
        return 0;
      case help:
        fmt::print("{}", usage);
        return 0;
      case '?':
        return wrong_usage({});  // getopt has said what is wrong
      default:
        break;
    }
    const auto count = read_count(optarg);
    if (!count) return wrong_usage(fmt::format("--{} {}: no count", options[index].name, optarg));
    (found == threads    ? latency.threads
     : found == device   ? latency.device
     : found == prompt   ? latency.prompt_tokens
     : found == generate ? latency.generated_tokens
                         : latency.repetitions) = *count;
  }
  if (optind < argc) return wrong_usage(fmt::format("'{}' is no option", argv[optind]));
  if (latency.model.empty()) return wrong_usage("give --model FILE");
  return measure(latency, as_json);
}
