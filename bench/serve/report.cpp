// A load run's figures as JSON, as a table and as a picture.

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/serve/metrics.hpp"

namespace sluice::bench {
namespace {

using Json = nlohmann::ordered_json;
using Runs = std::vector<std::pair<RunSettings, ServeMetrics>>;

/// aiperf writes an object a figure: its unit, and what is known of it.
Json aiperf(const std::string& unit, const Distribution& d) {
  return {{"unit", unit}, {"avg", d.mean}, {"min", d.min}, {"max", d.max},  {"p50", d.median},
          {"p90", d.p90}, {"p95", d.p95},  {"p99", d.p99}, {"std", d.std}};
}

Json aiperf(const std::string& unit, double value) { return {{"unit", unit}, {"avg", value}}; }

void put(Json& out, const std::string& name, const Distribution& d) {
  out["mean_" + name + "_ms"] = d.mean;
  out["median_" + name + "_ms"] = d.median;
  out["std_" + name + "_ms"] = d.std;
  out["p90_" + name + "_ms"] = d.p90;
  out["p95_" + name + "_ms"] = d.p95;
  out["p99_" + name + "_ms"] = d.p99;
}

std::string rate_text(double rate) { return rate > 0 ? fmt::format("{:g}/s", rate) : "inf"; }

// The picture: two panels beside each other, in SVG user units.
constexpr double panel_width = 420, panel_height = 300, margin_left = 70, margin_top = 50,
                 gap = 90, legend = 60;
struct Series {
  const char* name;
  const char* colour;  // told apart by most who are colour-blind (Okabe and Ito)
  double Distribution::*value;
};
constexpr std::array<Series, 3> series = {{{"median", "#0072B2", &Distribution::median},
                                           {"p90", "#E69F00", &Distribution::p90},
                                           {"p99", "#D55E00", &Distribution::p99}}};

/// The lowest of 1, 2 and 5 times a power of ten that is not below `value`.
double round_up(double value) {
  if (value <= 0) return 1;
  const double power = std::pow(10.0, std::floor(std::log10(value)));
  for (const double step : {1.0, 2.0, 5.0})
    if (step * power >= value) return step * power;
  return 10 * power;
}

std::string text_at(double x, double y, const std::string& anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     text);
}

std::string panel(const Runs& runs, const std::string& title, Distribution ServeMetrics::*figure,
                  double left) {
  double top_ms = 0, top_rate = 0;
  for (const auto& [settings, metrics] : runs) {
    top_ms = std::max(top_ms, (metrics.*figure).p99);
    top_rate = std::max(top_rate, settings.request_rate);
  }
  top_ms = round_up(top_ms);
  if (top_rate <= 0) top_rate = 1;
  const double bottom = margin_top + panel_height;
  const auto x = [&](double rate) { return left + rate / top_rate * panel_width; };
  const auto y = [&](double value) { return bottom - value / top_ms * panel_height; };
  std::string out = text_at(left + panel_width / 2, margin_top - 18, "middle", title);
  constexpr int lines = 5;
  for (int i = 0; i <= lines; ++i) {
    const double value = top_ms * i / lines;
    out += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ddd\"/>\n", left,
        y(value), left + panel_width, y(value));
    out += text_at(left - 8, y(value) + 4, "end", fmt::format("{:g}", value));
  }
  for (const auto& [settings, metrics] : runs)
    out += text_at(x(settings.request_rate), bottom + 20, "middle",
                   fmt::format("{:g}", settings.request_rate));
  out += text_at(left + panel_width / 2, bottom + 42, "middle", "requests a second");
  for (const auto& one : series) {
    std::string points, dots;
    for (const auto& [settings, metrics] : runs) {
      const double at_x = x(settings.request_rate), at_y = y(metrics.*figure.*one.value);
      points += fmt::format("{:.1f},{:.1f} ", at_x, at_y);
      dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", at_x, at_y,
                          one.colour);
    }
    out += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                       points, one.colour);
    out += dots;
  }
  return out;
}

}  // namespace

std::string to_json(const ServeMetrics& m, const RunSettings& settings) {
  Json out;
  out["model_id"] = settings.model;
  out["num_prompts"] = settings.num_prompts;
  if (settings.request_rate > 0)
    out["request_rate"] = settings.request_rate;
  else
    out["request_rate"] = "inf";
  out["burstiness"] = settings.burstiness;
  out["max_concurrency"] = settings.max_concurrency == 0 ? Json() : Json(settings.max_concurrency);
  out["seed"] = settings.seed;
  out["duration"] = m.duration_s;
  out["completed"] = m.completed;
  out["failed"] = m.failed;
  out["failures"] = Json::object();
  for (const auto& [code, count] : m.failures) out["failures"][code] = count;
  out["total_input_tokens"] = m.total_input_tokens;
  out["total_cached_tokens"] = m.total_cached_tokens;
  out["total_output_tokens"] = m.total_output_tokens;
  out["request_throughput"] = m.request_throughput;
  out["request_goodput"] = m.request_goodput ? Json(*m.request_goodput) : Json();
  out["output_throughput"] = m.output_throughput;
  out["total_token_throughput"] = m.total_token_throughput;
  out["max_output_tokens_per_s"] = m.max_output_tokens_per_s;
  out["max_concurrent_requests"] = m.max_concurrent_requests;
  put(out, "ttft", m.ttft);
  put(out, "tpot", m.tpot);
  put(out, "itl", m.itl);
  put(out, "e2el", m.e2el);
  auto& other = out["aiperf"];
  other["request_count"] = aiperf("requests", static_cast<double>(m.completed));
  other["error_request_count"] = aiperf("requests", static_cast<double>(m.failed));
  other["request_throughput"] = aiperf("requests/sec", m.request_throughput);
  other["output_token_throughput"] = aiperf("tokens/sec", m.output_throughput);
  if (m.request_goodput) other["goodput"] = aiperf("requests/sec", *m.request_goodput);
  other["time_to_first_token"] = aiperf("ms", m.ttft);
  other["inter_token_latency"] = aiperf("ms", m.tpot);  // its name for what vllm calls TPOT
  other["inter_chunk_latency"] = aiperf("ms", m.itl);
  other["request_latency"] = aiperf("ms", m.e2el);
  other["input_sequence_length"] = aiperf("tokens", m.input_tokens);
  other["output_sequence_length"] = aiperf("tokens", m.output_tokens);
  return out.dump();
}

std::string to_text(const ServeMetrics& m, const RunSettings& settings) {
  std::string out = fmt::format(
      "{}: {} requests at {}, {} s\n", settings.model, settings.num_prompts,
      rate_text(settings.request_rate), fmt::format("{:.2f}", m.duration_s));
  out += fmt::format("  completed {}, failed {}", m.completed, m.failed);
  for (const auto& [code, count] : m.failures) out += fmt::format(", {} {}", code, count);
  out += fmt::format("\n  tokens in {} ({} cached), out {}\n", m.total_input_tokens,
                     m.total_cached_tokens, m.total_output_tokens);
  out += fmt::format("  requests/s {:.2f}", m.request_throughput);
  if (m.request_goodput) out += fmt::format(", good ones {:.2f}", *m.request_goodput);
  out += fmt::format("\n  output tokens/s {:.1f}, best second {:.0f}, with prompts {:.1f}\n",
                     m.output_throughput, m.max_output_tokens_per_s, m.total_token_throughput);
  out += fmt::format("  {:<8}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}\n", "ms", "mean", "std", "median",
                     "p90", "p99", "max");
  const auto row = [&](const char* name, const Distribution& d) {
    out += fmt::format("  {:<8}{:>12.2f}{:>12.2f}{:>12.2f}{:>12.2f}{:>12.2f}{:>12.2f}\n", name,
                       d.mean, d.std, d.median, d.p90, d.p99, d.max);
  };
  row("TTFT", m.ttft);
  row("TPOT", m.tpot);
  row("ITL", m.itl);
  row("E2EL", m.e2el);
  return out;
}

std::string to_svg(const Runs& runs) {
  const double width = margin_left + 2 * panel_width + gap + 30;
  const double height = margin_top + panel_height + legend + 40;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0f} {:.0f}\" "
      "font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  out += panel(runs, "Time to first token, ms", &ServeMetrics::ttft, margin_left);
  out += panel(runs, "Inter-token latency, ms", &ServeMetrics::itl,
               margin_left + panel_width + gap);
  double left = margin_left;
  for (const auto& one : series) {
    out += fmt::format("<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"14\" height=\"4\" fill=\"{}\"/>\n",
                       left, height - 22, one.colour);
    out += text_at(left + 20, height - 15, "start", one.name);
    left += 90;
  }
  return out + "</svg>\n";
}

}  // namespace sluice::bench
