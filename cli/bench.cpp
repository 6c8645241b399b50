#include "bench/latency.hpp"
#include "cli/bench_serve.hpp"
#include "cli/command.hpp"

namespace sluice::cli {

namespace {

struct Options {
  bench::LatencyOptions latency;
  bool json = false;
};

Result<void> latency(const Options& options) {
  const auto result = bench::measure_latency(options.latency);
  if (!result) return tl::unexpected(result.error());
  fmt::print("{}", options.json ? to_json(*result) + "\n" : to_text(*result));
  return {};
}

}  // namespace

Command bench_command(CLI::App& root) {
  CLI::App* app = add_command(root, "bench", "Measure",
                              "  sluice bench latency --model FILE --json\n"
                              "  sluice bench serve --connect EP --num-prompts 100");
  app->require_subcommand(1);
  CLI::App* one = add_command(*app, "latency", "One sequence's speed, and the device's limit",
                              "  sluice bench latency --model FILE --threads 2 --json");
  auto options = std::make_shared<Options>();
  auto& latency_options = options->latency;
  one->add_option("--model", latency_options.model, "GGUF file, or folder of a safetensors model")
      ->required()
      ->type_name("FILE");
  one->add_option("--backend", latency_options.backend, "What computes: auto, cpu, cuda")
      ->type_name("NAME")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  one->add_option("--quantization", latency_options.quantization,
                  "fp8: cuda keeps the layers' matrices in 8 bits")
      ->type_name("NAME")
      ->check(CLI::IsMember({"fp8"}));
  one->add_option("--kv-cache-dtype", latency_options.kv_cache_dtype,
                  "fp8: cuda keeps keys and values in 8 bits; auto: in 16")
      ->type_name("NAME")
      ->check(CLI::IsMember({"auto", "fp8"}))
      ->capture_default_str();
  one->add_option("--device", latency_options.device, "Which of the backend's devices")
      ->type_name("N")
      ->capture_default_str();
  one->add_option("--threads", latency_options.threads, "The cpu's threads; 0: one a core")
      ->type_name("N");
  one->add_option("--repetitions", latency_options.repetitions, "Counted runs of each")
      ->type_name("N")
      ->capture_default_str();
  one->add_option("--prompt-tokens", latency_options.prompt_tokens,
                  "Length of the prompt; 0: not measured")
      ->type_name("N")
      ->capture_default_str();
  one->add_option("--tokens", latency_options.generated_tokens, "Tokens generated; 0: not measured")
      ->type_name("N")
      ->capture_default_str();
  one->add_option("--streams", latency_options.streams, "Sequences that generate together")
      ->type_name("N")
      ->capture_default_str();
  one->add_option("--depth", latency_options.depth, "Tokens that each has before it generates")
      ->type_name("N")
      ->capture_default_str();
  one->add_flag("--json", options->json, "One JSON object");
  const Command serve = bench_serve_command(*app);
  return {app, [options, serve] { return serve.app->parsed() ? serve.run() : latency(*options); }};
}

}  // namespace sluice::cli
