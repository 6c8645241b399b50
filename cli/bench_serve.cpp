#include "cli/bench_serve.hpp"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>

#include "bench/serve/load.hpp"
#include "bench/serve/metrics.hpp"
#include "bench/serve/workload.hpp"
#include "cli/keys.hpp"
#include "cli/terminal.hpp"
#include "transport/client.hpp"

namespace sluice::cli {

namespace {

struct Options {
  KeyOptions keys;
  std::string connect, model, dataset, plot;
  std::uint64_t num_prompts = 1000, max_concurrency = 0, num_warmups = 0, seed = 0;
  std::string request_rate = "inf";
  std::vector<std::string> sweep, goodput;
  double burstiness = 1;
  std::uint32_t input_tokens = 1024, output_tokens = 128, prefix_tokens = 0;
  float temperature = 0;
  bool ignore_eos = false, json = false;
};

using Runs = std::vector<std::pair<bench::RunSettings, bench::ServeMetrics>>;

double parse_number(const std::string& option, std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value > 0))
    throw UsageError{fmt::format("{}: '{}' is not a number above 0", option, text)};
  return value;
}

/// Requests a second; 0 stands for all at once.
double parse_rate(const std::string& option, std::string_view text) {
  const double rate = parse_number(option, text);
  return std::isinf(rate) ? 0 : rate;
}

bench::Goodput parse_goodput(const std::vector<std::string>& limits) {
  bench::Goodput goodput;
  for (const std::string& limit : limits) {
    const std::size_t colon = limit.find(':');
    const std::string name = limit.substr(0, colon);
    auto* field = name == "ttft"   ? &goodput.ttft_ms
                  : name == "tpot" ? &goodput.tpot_ms
                  : name == "e2el" ? &goodput.e2el_ms
                                   : nullptr;
    if (colon == std::string::npos || field == nullptr)
      throw UsageError{fmt::format("--goodput: '{}' is not ttft:MS, tpot:MS or e2el:MS", limit)};
    *field = parse_number("--goodput", std::string_view(limit).substr(colon + 1));
  }
  return goodput;
}

/// One line on stderr that shows how far a run is; nothing unless that is a terminal.
class RunBar {
 public:
  explicit RunBar(std::string title) : title_(std::move(title)) {}
  ~RunBar() {
    if (terminal_) fmt::print(stderr, "\r\033[K");
  }
  RunBar(const RunBar&) = delete;
  RunBar& operator=(const RunBar&) = delete;

  void show(const bench::LoadProgress& progress) const {
    if (!terminal_) return;
    constexpr std::size_t columns = 24;
    const std::size_t full = progress.total == 0 ? 0 : columns * progress.ended / progress.total;
    const double rate = progress.elapsed_s > 0
                            ? static_cast<double>(progress.output_tokens) / progress.elapsed_s
                            : 0;
    fmt::print(stderr, "\r\033[K{} [{}{}] {}/{}, {} running, {} failed, {:.0f} tokens/s", title_,
               std::string(full, '#'), std::string(columns - full, '.'), progress.ended,
               progress.total, progress.sent - progress.ended, progress.failed, rate);
    std::fflush(stderr);
  }

 private:
  std::string title_;
  bool terminal_ = isatty(STDERR_FILENO) == 1;
};

Result<transport::ModelInfo> find_model(const transport::Welcome& welcome,
                                        const std::string& name) {
  std::string known;
  for (const auto& model : welcome.models) {
    if (model.name == name || (name.empty() && welcome.models.size() == 1)) return model;
    known += (known.empty() ? "" : ", ") + model.name;
  }
  return fail(ErrorCode::not_found, "--model: the node serves {}; choose one", known);
}

class ServeBench {
 public:
  ServeBench(const Options& options, transport::Client& client, transport::ModelInfo model,
             std::vector<transport::Prompt> dataset)
      : options_(options),
        client_(client),
        model_(std::move(model)),
        dataset_(std::move(dataset)),
        goodput_(parse_goodput(options.goodput)) {}

  /// Run `index` of a sweep has prompts of its own: a cache that saw the last run's does not help.
  Result<std::pair<bench::RunSettings, bench::ServeMetrics>> run(double rate, std::uint64_t index) {
    const std::uint64_t seed = options_.seed + index;
    auto load = make_load(options_.num_prompts, rate, seed);
    if (options_.num_warmups > 0) {
      auto warmup = make_load(options_.num_warmups, 0, ~seed);
      auto warmed = run_load(std::move(warmup), "warming up");
      if (!warmed) return tl::unexpected(warmed.error());
    }
    auto done = run_load(std::move(load), "running");
    if (!done) return tl::unexpected(done.error());
    bench::RunSettings settings{model_.name,         options_.num_prompts,     rate,
                                options_.burstiness, options_.max_concurrency, options_.seed};
    return std::pair{settings, bench::measure(done->traces, done->duration_ns, goodput_)};
  }

 private:
  bench::Load make_load(std::size_t count, double rate, std::uint64_t seed) {
    auto prompts = dataset_.empty()
                       ? bench::random_prompts(count,
                                               {model_.vocabulary, options_.input_tokens,
                                                options_.prefix_tokens},
                                               seed)
                       : bench::pick_prompts(dataset_, count, seed);
    bench::Load load;
    load.concurrency_max = options_.max_concurrency;
    load.due_ns = bench::due_times_ns(count, rate, options_.burstiness, seed);
    for (std::size_t i = 0; i < count; ++i) {
      auto& submit = load.requests.emplace_back(transport::Client::new_submit());
      submit.model = model_.name;
      submit.prompt = std::move(prompts[i]);
      submit.max_tokens = options_.output_tokens;
      submit.sampling.temperature = options_.temperature;
      submit.sampling.seed = seed + i;
      submit.ignore_eos = options_.ignore_eos || dataset_.empty();
    }
    return load;
  }

  Result<bench::LoadResult> run_load(bench::Load load, const std::string& title) {
    const RunBar bar(title);
    return bench::run_load(client_, std::move(load), [&](const bench::LoadProgress& progress) {
      bar.show(progress);
      return !interrupts_.take();
    });
  }

  const Options& options_;
  transport::Client& client_;
  transport::ModelInfo model_;
  std::vector<transport::Prompt> dataset_;
  bench::Goodput goodput_;
  InterruptGuard interrupts_;
};

Result<void> write_plot(const std::string& path, const Runs& runs) {
  std::ofstream file(path, std::ios::binary);
  file << bench::to_svg(runs);
  file.close();
  if (!file) return fail(ErrorCode::io, "cannot write {}: {}", path, std::strerror(errno));
  return {};
}

void print_json(const Runs& runs, bool sweep) {
  std::string all;
  for (const auto& [settings, metrics] : runs)
    all += (all.empty() ? "" : ",") + to_json(metrics, settings);
  fmt::print("{}\n", sweep ? "{\"sweep\":[" + all + "]}" : all);
}

Result<void> serve(const Options& options) {
  std::vector<double> rates;
  for (const std::string& rate : options.sweep) rates.push_back(parse_rate("--sweep", rate));
  const bool sweep = !rates.empty();
  if (!sweep) rates.push_back(parse_rate("--request-rate", options.request_rate));
  parse_goodput(options.goodput);
  std::vector<transport::Prompt> dataset;
  if (!options.dataset.empty()) {
    auto read = bench::read_dataset(options.dataset);
    if (!read) return tl::unexpected(read.error());
    dataset = std::move(*read);
  }
  transport::ClientConfig config;
  config.connect = options.connect;
  config.name = "sluice bench serve";
  auto curve = read_keys(options.keys);
  if (!curve) return tl::unexpected(curve.error());
  config.curve = std::move(*curve);
  auto client = transport::Client::connect(config);
  if (!client) return tl::unexpected(client.error());
  auto model = find_model((*client)->welcome(), options.model);
  if (!model) return tl::unexpected(model.error());
  ServeBench bench(options, **client, std::move(*model), std::move(dataset));
  Runs runs;
  for (std::size_t i = 0; i < rates.size(); ++i) {
    auto run = bench.run(rates[i], i);
    if (!run) return tl::unexpected(run.error());
    runs.push_back(std::move(*run));
    if (!options.json) fmt::print("{}", to_text(runs.back().second, runs.back().first));
    std::fflush(stdout);
  }
  if (options.json) print_json(runs, sweep);
  if (!options.plot.empty())
    if (auto written = write_plot(options.plot, runs); !written) return written;
  std::uint64_t completed = 0;
  for (const auto& [settings, metrics] : runs) completed += metrics.completed;
  if (completed == 0) return fail(ErrorCode::unavailable, "no request was completed");
  return {};
}

}  // namespace

Command bench_serve_command(CLI::App& bench) {
  CLI::App* app = add_command(
      bench, "serve", "Put load on a node and measure it, as `vllm bench serve` does",
      "  sluice bench serve --connect EP --num-prompts 100 --max-concurrency 32\n"
      "  sluice bench serve --connect EP --request-rate 4 --goodput ttft:500 tpot:50 --json\n"
      "  sluice bench serve --connect EP --sweep 1,2,4,8 --plot load.svg");
  auto options = std::make_shared<Options>();
  const auto add = [app](const std::string& name, auto& value, const std::string& does,
                         const std::string& type) {
    return app->add_option(name, value, does)->type_name(type);
  };
  add("--connect", options->connect, "Endpoint of the node", "EP")->required();
  add_key_options(*app, options->keys);
  add("--model", options->model, "Which of its models, if there are several", "NAME");
  add("--num-prompts", options->num_prompts, "Requests", "N")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  auto* rate = add("--request-rate", options->request_rate, "Requests a second; inf: all at once",
                   "RATE")
                   ->capture_default_str();
  add("--burstiness", options->burstiness, "1: Poisson; below: burstier; above: more even", "B")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  add("--max-concurrency", options->max_concurrency, "Running at once; 0: no limit", "N");
  add("--random-input-len", options->input_tokens, "Tokens of each random prompt", "N")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add("--random-prefix-len", options->prefix_tokens, "Before them, the same in every prompt", "N")
      ->check(CLI::Range(0, 1 << 20));
  add("--random-output-len,--output-len", options->output_tokens, "Tokens of each answer", "N")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add("--dataset-path", options->dataset,
      "Prompts instead of random ones: one a line, JSON Lines, or ShareGPT's JSON", "FILE");
  app->add_flag("--ignore-eos", options->ignore_eos,
                "Answers do not end before their length; always so with random prompts");
  add("--temperature", options->temperature, "0: greedy", "T")->check(CLI::Range(0.0, 1e6));
  add("--seed", options->seed, "Of prompts and times", "N");
  add("--num-warmups", options->num_warmups, "Requests before, not counted", "N");
  add("--goodput", options->goodput, "Limits of a good request: ttft:MS, tpot:MS, e2el:MS",
      "LIMIT")
      ->expected(1, 3);
  add("--sweep", options->sweep, "A run at each of these rates", "RATE,...")
      ->delimiter(',')
      ->excludes(rate);
  add("--plot", options->plot, "Write TTFT and ITL against the rate as SVG", "FILE");
  app->add_flag("--json", options->json, "One JSON object, in vllm's names and in aiperf's");
  return {app, [options] { return serve(*options); }};
}

}  // namespace sluice::cli
