// sluice-bench: what `sluice bench latency` measures, and the machine's limits alone, built without
// actors and sockets for hosts that have neither; so its options are read by the C library.

#include <fmt/format.h>
#include <getopt.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "bench/latency.hpp"
#include "kernels/backends.hpp"
#include "kernels/cpu/peak.hpp"

namespace {

using namespace sluice;

constexpr const char* usage =
    "The speed of one sequence or several, and the machine's limit beside it.\n"
    "Usage: sluice-bench --model FILE | --shape NAME:FORMAT [options]\n"
    "       sluice-bench --bandwidth BYTES | --peak [options]\n"
    "  --model FILE        GGUF file, or folder of a safetensors model\n"
    "  --shape NAME:FORMAT random weights of a known shape, as llama-3.1-8b:bf16; a wrong name\n"
    "                      lists those that there are\n"
    "  --backend NAME      auto, cpu or cuda\n"
    "  --quantization fp8  keep the layers' matrices in 8 bits; cuda alone\n"
    "  --kv-cache-dtype T  auto, or fp8: keep keys and values in 8 bits; cuda alone\n"
    "  --device N          which of the backend's devices\n"
    "  --plain-launches    cuda's kernels each start when the one before has ended: to compare\n"
    "  --threads N         the cpu's threads; 0: one a core\n"
    "  --prompt N          prompt tokens; 0: not measured\n"
    "  --generate N        generated tokens; 0: not measured\n"
    "  --streams N         sequences that generate together\n"
    "  --depth N           tokens that each has before it generates\n"
    "  --repetitions N     counted repetitions\n"
    "  --json              one JSON object on stdout\n"
    "  --bandwidth BYTES   only how fast the device reads so many bytes\n"
    "  --peak              only how fast the cpu multiplies and adds out of registers\n"
    "  --backends          list the backends that this machine can use, and why not\n"
    "  --help              this text\n";

/// Exit code 2 and where to read on.
int wrong_usage(const std::string& why) {
  if (!why.empty()) fmt::print(stderr, "sluice-bench: bad_request: {}\n", why);
  fmt::print(stderr, "Run `sluice-bench --help` for what it takes.\n");
  return 2;
}

template <class Count>
std::optional<Count> read_count(const char* text) {
  Count count = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, count);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return count;
}

int failed(const Error& error) {
  fmt::print(stderr, "sluice-bench: {}: {}\n", to_string(error.code), error.message);
  return 1;
}

int measure(const bench::LatencyOptions& options, bool json) {
  const auto result = bench::measure_latency(options);
  if (!result) return failed(result.error());
  fmt::print("{}", json ? bench::to_json(*result) + "\n" : bench::to_text(*result));
  return 0;
}

/// The backend with nothing on it, for what it knows of its device.
Result<std::unique_ptr<kernels::Backend>> bare_backend(const bench::LatencyOptions& options) {
  const auto choice = kernels::choose_backend(options.backend);
  if (!choice) return tl::unexpected(choice.error());
  return kernels::make_backend(choice->name,
                               {.threads = options.threads, .device = options.device},
                               [](kernels::StepResult&&) {});
}

int probe_bandwidth(const bench::LatencyOptions& options, std::uint64_t bytes, bool json) {
  const auto backend = bare_backend(options);
  if (!backend) return failed(backend.error());
  const auto rate = (*backend)->read_bandwidth(bytes);
  if (!rate) return failed(rate.error());
  const auto& device = (*backend)->device();
  if (json) {
    const nlohmann::ordered_json out{{"read_bandwidth_gb_s", *rate / 1e9},
                                     {"bytes", bytes},
                                     {"threads", device.threads},
                                     {"device", device.device}};
    fmt::print("{}\n", out.dump());
  } else {
    fmt::print("{:.1f} GB/s over {:.1f} MB, {}\n", *rate / 1e9, static_cast<double>(bytes) / 1e6,
               device.device);
  }
  return 0;
}

int probe_peaks(bench::LatencyOptions options, bool json) {
  options.backend = "cpu";
  const auto backend = bare_backend(options);  // knows how many threads "one a core" are
  if (!backend) return failed(backend.error());
  const auto& device = (*backend)->device();
  const auto peaks = kernels::cpu::arithmetic_peaks(device.threads);
  nlohmann::ordered_json out{{"threads", device.threads}, {"device", device.device}};
  for (const auto& peak : peaks) {
    out[fmt::format("{}_gop_s", peak.values)] = peak.ops_per_s / 1e9;
    out[fmt::format("{}_instructions", peak.values)] = peak.instructions;
    if (!json)
      fmt::print("{:<5} {:8.0f} Gop/s by {}\n", peak.values, peak.ops_per_s / 1e9,
                 peak.instructions);
  }
  if (json)
    fmt::print("{}\n", out.dump());
  else
    fmt::print("{}{}\n", peaks.empty() ? "no probe for this processor: " : "", device.device);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  enum Option {
    model = 1, shape, json, backend, backends, help, device, threads, prompt, generate, repetitions,
    streams, depth, bandwidth, peak, quantization, plain_launches,
    kv_cache_dtype
  };
  constexpr option options[] = {{"model", required_argument, nullptr, model},
                                {"shape", required_argument, nullptr, shape},
                                {"threads", required_argument, nullptr, threads},
                                {"prompt", required_argument, nullptr, prompt},
                                {"generate", required_argument, nullptr, generate},
                                {"repetitions", required_argument, nullptr, repetitions},
                                {"streams", required_argument, nullptr, streams},
                                {"depth", required_argument, nullptr, depth},
                                {"bandwidth", required_argument, nullptr, bandwidth},
                                {"peak", no_argument, nullptr, peak},
                                {"json", no_argument, nullptr, json},
                                {"backend", required_argument, nullptr, backend},
                                {"quantization", required_argument, nullptr, quantization},
                                {"kv-cache-dtype", required_argument, nullptr, kv_cache_dtype},
                                {"device", required_argument, nullptr, device},
                                {"plain-launches", no_argument, nullptr, plain_launches},
                                {"backends", no_argument, nullptr, backends},
                                {"help", no_argument, nullptr, help},
                                {}};
  bench::LatencyOptions latency;
  bool as_json = false, peaks = false;
  std::optional<std::uint64_t> probed_bytes;
  for (int index = 0, found; (found = getopt_long(argc, argv, "", options, &index)) != -1;) {
    switch (found) {
      case model:
        latency.model = optarg;
        continue;
      case shape:
        latency.shape = optarg;
        continue;
      case backend:
        latency.backend = optarg;
        continue;
      case quantization:
        latency.quantization = optarg;
        continue;
      case kv_cache_dtype:
        latency.kv_cache_dtype = optarg;
        continue;
      case json:
        as_json = true;
        continue;
      case plain_launches:
        latency.early_launches = false;
        continue;
      case peak:
        peaks = true;
        continue;
      case bandwidth:
        probed_bytes = read_count<std::uint64_t>(optarg);
        if (probed_bytes && *probed_bytes > 0) continue;
        return wrong_usage(fmt::format("--bandwidth {}: no count of bytes", optarg));
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
    const auto count = read_count<std::uint32_t>(optarg);
    if (!count) return wrong_usage(fmt::format("--{} {}: no count", options[index].name, optarg));
    (found == threads    ? latency.threads
     : found == device   ? latency.device
     : found == prompt   ? latency.prompt_tokens
     : found == generate ? latency.generated_tokens
     : found == streams  ? latency.streams
     : found == depth    ? latency.depth
                         : latency.repetitions) = *count;
  }
  if (optind < argc) return wrong_usage(fmt::format("'{}' is no option", argv[optind]));
  if (peaks) return probe_peaks(latency, as_json);
  if (probed_bytes) return probe_bandwidth(latency, *probed_bytes, as_json);
  if (latency.model.empty() == latency.shape.empty())
    return wrong_usage("give --model FILE or --shape NAME:FORMAT, or --bandwidth BYTES, or --peak");
  return measure(latency, as_json);
}
