#include "cli/top_view.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace sluice::cli {

namespace {

using Json = nlohmann::ordered_json;

/// What a node is called is its owner's to choose, and no reason to let it drive our terminal.
std::string shown(const std::string& text) {
  std::string out;
  for (const char c : text) out += c >= ' ' && c <= '~' ? c : '?';
  return out;
}

/// The values below a prefix, by the rest of their names.
std::vector<std::pair<std::string, double>> below(const transport::Values& values,
                                                  const std::string& prefix) {
  std::vector<std::pair<std::string, double>> out;
  for (auto at = values.lower_bound(prefix); at != values.end() && at->first.starts_with(prefix);
       ++at)
    out.emplace_back(at->first.substr(prefix.size()), at->second);
  return out;
}

std::string counts(const transport::Values& values, const std::string& prefix) {
  std::string out;
  for (const auto& [name, count] : below(values, prefix))
    out += fmt::format("{}{} {:.0f}", out.empty() ? "" : ", ", shown(name), count);
  return out.empty() ? "none" : out;
}

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

struct EngineRow {
  std::string name, backend;
  double running, waiting, tokens_per_s, kv_use, prefix_hit_rate, preemptions;
};

EngineRow engine_row(const TopSnapshot& snapshot, const transport::ModelInfo& model) {
  const std::string prefix = "engine." + model.name + ".";
  const auto value = [&](const char* name) { return snapshot.value(prefix + name); };
  return {model.name,
          model.backend,
          value("running"),
          value("waiting"),
          snapshot.rate(prefix + "tokens"),
          ratio(value("blocks_total") - value("blocks_free"), value("blocks_total")),
          ratio(value("cached_tokens"), value("prompt_tokens")),
          value("preemptions")};
}

Json latency_json(const transport::Histogram& histogram) {
  return {{"count", histogram.count()},
          {"mean", histogram.mean_ms()},
          {"p50", histogram.percentile_ms(50)},
          {"p90", histogram.percentile_ms(90)},
          {"p99", histogram.percentile_ms(99)}};
}

std::string latency_line(const char* name, const transport::Histogram& histogram) {
  return fmt::format("{:<10}{:>10}{:>10.1f}{:>10.1f}{:>10.1f}{:>10.1f}\n", name, histogram.count(),
                     histogram.mean_ms(), histogram.percentile_ms(50), histogram.percentile_ms(90),
                     histogram.percentile_ms(99));
}

std::string clipped(const std::string& text, std::size_t columns) {
  std::string out;
  std::size_t column = 0;
  for (const char c : text) {
    if (c == '\n') column = 0;
    if (c == '\n' || columns == 0 || column++ < columns) out += c;
  }
  return out;
}

}  // namespace

double TopSnapshot::value(const std::string& name) const {
  const auto found = now.find(name);
  return found == now.end() ? 0 : found->second;
}

double TopSnapshot::rate(const std::string& counter) const {
  const auto earlier = before.find(counter);
  if (earlier == before.end() || seconds <= 0) return 0;
  return std::max(0.0, value(counter) - earlier->second) / seconds;
}

double TopSnapshot::tokens_per_s() const {
  return before.empty() ? value("streams.tokens_per_s") : rate("engine.tokens");
}

transport::Histogram TopSnapshot::histogram(const std::string& name) const {
  return transport::Histogram::from(name, now).since(transport::Histogram::from(name, before));
}

std::string to_text(const TopSnapshot& s, std::size_t columns) {
  std::string out = fmt::format(
      "sluice top  {}  site {}  {}\n\n", s.connect, shown(s.welcome.site),
      s.health.ready ? "ready" : "not ready: " + shown(s.health.why));
  out += fmt::format("{:<32}{:<9}{:>8}{:>8}{:>10}{:>7}{:>8}{:>10}\n", "engine", "backend",
                     "running", "queue", "tokens/s", "KV", "cached", "preempted");
  for (const auto& model : s.welcome.models) {
    const EngineRow row = engine_row(s, model);
    out += fmt::format("{:<32}{:<9}{:>8.0f}{:>8.0f}{:>10.1f}{:>6.1f}%{:>7.1f}%{:>10.0f}\n",
                       shown(row.name).substr(0, 31), shown(row.backend), row.running, row.waiting,
                       s.before.empty() && s.welcome.models.size() == 1 ? s.tokens_per_s()
                                                                        : row.tokens_per_s,
                       row.kv_use * 100, row.prefix_hit_rate * 100, row.preemptions);
  }
  out += fmt::format("\nstreams   {:.0f} open, {:.0f} kept, {:.1f} MB of log, {:.1f} tokens/s\n",
                     s.value("session.open"), s.value("streams.kept"),
                     s.value("streams.log_bytes") / 1e6, s.tokens_per_s());
  out += fmt::format("finished  {}\n", counts(s.now, "finished."));
  out += fmt::format("refused   {}\n\n", counts(s.now, "refused."));
  out += fmt::format("{:<10}{:>10}{:>10}{:>10}{:>10}{:>10}   {}\n", "ms", "count", "mean", "p50",
                     "p90", "p99",
                     s.before.empty() ? std::string("since the start")
                                      : fmt::format("last {:.0f} s", s.seconds));
  out += latency_line("TTFT", s.histogram("streams.ttft_ms"));
  out += latency_line("ITL", s.histogram("streams.itl_ms"));
  out += fmt::format("\nframes    {:.0f} in, {:.0f} out, {:.0f} malformed, {:.0f} dropped; "
                     "{:.0f} connections lost, {:.0f} subscriptions\n",
                     s.value("io.frames_in"), s.value("io.frames_out"),
                     s.value("io.frames_malformed"), s.value("io.frames_dropped"),
                     s.value("io.peers_lost"), s.value("io.subscriptions"));
  return clipped(out, columns);
}

std::string to_json(const TopSnapshot& s) {
  Json out;
  out["connect"] = s.connect;
  out["site"] = s.welcome.site;
  out["ready"] = s.health.ready;
  out["why"] = s.health.why;
  out["seconds"] = s.seconds;
  out["engines"] = Json::array();
  for (const auto& model : s.welcome.models) {
    const EngineRow row = engine_row(s, model);
    out["engines"].push_back({{"name", row.name},
                              {"backend", row.backend},
                              {"running", row.running},
                              {"waiting", row.waiting},
                              {"tokens_per_s", row.tokens_per_s},
                              {"kv_use", row.kv_use},
                              {"prefix_hit_rate", row.prefix_hit_rate},
                              {"preemptions", row.preemptions}});
  }
  out["streams_open"] = s.value("session.open");
  out["streams_kept"] = s.value("streams.kept");
  out["tokens_per_s"] = s.tokens_per_s();
  out["queue"] = s.value("engine.waiting");
  out["kv_use"] = s.value("engine.kv_use");
  out["prefix_hit_rate"] = s.value("engine.prefix_hit_rate");
  out["ttft_ms"] = latency_json(s.histogram("streams.ttft_ms"));
  out["itl_ms"] = latency_json(s.histogram("streams.itl_ms"));
  for (const std::string group : {"finished", "refused"}) {
    out[group] = Json::object();
    for (const auto& [name, count] : below(s.now, group + ".")) out[group][name] = count;
  }
  return out.dump();
}

}  // namespace sluice::cli
