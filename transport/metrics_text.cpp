#include "transport/metrics_text.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <string_view>
#include <vector>

namespace sluice::transport {
namespace {

struct Metric {
  const char* value;  ///< the name in stats; of an engine's, what follows "engine.NAME."
  const char* name;
  const char* type;
  const char* help;
};

constexpr std::array<Metric, 10> of_engines = {{
    {"running", "sluice_num_requests_running", "gauge", "Sequences in the engine's batch."},
    {"waiting", "sluice_num_requests_waiting", "gauge", "Sequences in the engine's queue."},
    {"blocks_total", "sluice_kv_cache_blocks", "gauge", "Blocks of the KV pool."},
    {"blocks_free", "sluice_kv_cache_blocks_free", "gauge",
     "Blocks that no sequence holds, those kept for the prefix cache included."},
    {"preemptions", "sluice_num_preemptions_total", "counter",
     "Sequences that gave up their blocks and were computed again."},
    {"devices_lost", "sluice_engine_devices_lost_total", "counter",
     "Executors that ended; what ran on them was computed again."},
    {"steps", "sluice_engine_steps_total", "counter", "Forward passes."},
    {"prompt_tokens", "sluice_prompt_tokens_total", "counter", "Tokens of admitted prompts."},
    {"cached_tokens", "sluice_prefix_cache_hits_total", "counter",
     "Tokens of admitted prompts that the prefix cache had."},
    {"tokens", "sluice_generation_tokens_total", "counter", "Tokens generated."},
}};

constexpr std::array<Metric, 20> of_node = {{
    {"session.open", "sluice_streams_open", "gauge", "Streams without a terminal."},
    {"streams.kept", "sluice_streams_kept", "gauge", "Streams whose log is kept."},
    {"streams.log_bytes", "sluice_stream_log_bytes", "gauge", "Memory of all kept logs."},
    {"io.subscriptions", "sluice_subscriptions", "gauge", "Subscriptions to streams."},
    {"io.frames_in", "sluice_frames_received_total", "counter", "Frames from clients."},
    {"io.frames_out", "sluice_frames_sent_total", "counter", "Frames to clients."},
    {"io.frames_malformed", "sluice_frames_malformed_total", "counter",
     "Frames that could not be read."},
    {"io.frames_dropped", "sluice_frames_dropped_total", "counter",
     "Frames for peers that were gone or too slow."},
    {"io.peers_lost", "sluice_connections_lost_total", "counter", "Connections that were lost."},
    {"io.clients_stalled", "sluice_clients_stalled_total", "counter",
     "Clients let go because they took nothing."},
    {"security.admitted", "sluice_connections_admitted_total", "counter",
     "Connections whose key is in the allow list."},
    {"security.keys_refused", "sluice_connections_refused_total", "counter",
     "Connections whose key is not."},
    {"security.handshakes_failed", "sluice_handshakes_failed_total", "counter",
     "Connections that were plain, garbled, replayed, or not finished in time."},
    {"security.connections_cut", "sluice_connections_cut_total", "counter",
     "Connections closed because their key was removed."},
    {"peers.links_up", "sluice_peers", "gauge", "Nodes connected to this one."},
    {"peers.links_lost", "sluice_peers_lost_total", "counter", "Sessions with nodes that ended."},
    {"peers.messages_in", "sluice_peer_messages_received_total", "counter", "Messages of nodes."},
    {"peers.messages_out", "sluice_peer_messages_sent_total", "counter", "Messages to nodes."},
    {"peers.malformed", "sluice_peer_messages_malformed_total", "counter",
     "Frames that were no node's, and messages that were refused."},
    {"security.frames_refused", "sluice_frames_refused_total", "counter",
     "Frames under way from a key that was removed."},
}};

/// The names of the engines, which may have dots.
std::vector<std::string> engines_in(const Values& values) {
  constexpr std::string_view begin = "engine.", end = ".blocks_total";
  std::vector<std::string> names;
  for (const auto& [name, value] : values)
    if (name.starts_with(begin) && name.ends_with(end) && name.size() > begin.size() + end.size())
      names.push_back(name.substr(begin.size(), name.size() - begin.size() - end.size()));
  return names;
}

std::string number(double value) {
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return std::isnan(value) ? "NaN" : fmt::format("{}", value);
}

void put_head(std::string& out, const std::string& name, const char* type, const char* help) {
  out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

std::string label(const std::string& name, const std::string& value) {
  std::string escaped;
  for (const char c : value) {
    if (c == '\\' || c == '"') escaped += '\\';
    escaped += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return name + "=\"" + escaped + "\"";
}

void put_group(std::string& out, const Values& values, const std::string& prefix,
               const std::string& name, const std::string& labelled, const char* help) {
  put_head(out, name, "counter", help);
  for (auto at = values.lower_bound(prefix); at != values.end() && at->first.starts_with(prefix);
       ++at)
    out += fmt::format("{}{{{}}} {}\n", name, label(labelled, at->first.substr(prefix.size())),
                       number(at->second));
}

/// One bucket an octave: bounds must stay the same from scrape to scrape, also while empty.
void put_histogram(std::string& out, const Values& values, const std::string& from,
                   const std::string& name, const char* help) {
  const auto histogram = Histogram::from(from, values);
  put_head(out, name, "histogram", help);
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < Histogram::bucket_count; ++i) {
    sum += histogram.in_bucket(i);
    const bool last = i + 1 == Histogram::bucket_count;
    if (i % Histogram::per_octave != 0 && !last) continue;
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name,
                       last ? std::string("+Inf")
                            : fmt::format("{:.8g}", Histogram::upper_ms(i) / 1000),
                       sum);
  }
  out += fmt::format("{}_sum {}\n", name, number(histogram.sum_ms() / 1000));
  out += fmt::format("{}_count {}\n", name, sum);
}

}  // namespace

std::string metrics_text(const Values& values) {
  std::string out;
  const auto models = engines_in(values);
  for (const auto& metric : of_engines) {
    put_head(out, metric.name, metric.type, metric.help);
    for (const auto& model : models) {
      const auto found = values.find("engine." + model + "." + metric.value);
      if (found != values.end())
        out += fmt::format("{}{{{}}} {}\n", metric.name, label("model_name", model),
                           number(found->second));
    }
  }
  for (const auto& metric : of_node) {
    const auto found = values.find(metric.value);
    if (found == values.end()) continue;
    put_head(out, metric.name, metric.type, metric.help);
    out += fmt::format("{} {}\n", metric.name, number(found->second));
  }
  put_group(out, values, "finished.", "sluice_requests_finished_total", "finished_reason",
            "Requests that ended, by how.");
  put_group(out, values, "refused.", "sluice_requests_refused_total", "code",
            "Messages that were refused, by error code.");
  put_histogram(out, values, "streams.ttft_ms", "sluice_time_to_first_token_seconds",
                "From a request's arrival to its first token.");
  put_histogram(out, values, "streams.itl_ms", "sluice_inter_token_latency_seconds",
                "Between tokens of a stream.");
  return out;
}

}  // namespace sluice::transport
