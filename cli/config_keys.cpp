#include "cli/config_keys.hpp"

namespace sluice::cli {

namespace {

constexpr double gigabyte = 1073741824.0;
constexpr std::uint64_t ns_per_ms = 1'000'000;

}  // namespace

#define SLUICE_FIELD(owner, path) +[](owner& o) { return Field{&o.path}; }

const std::vector<NodeKey>& node_keys() {
  static const std::vector<NodeKey> keys = {
      {"node", "insecure", SLUICE_FIELD(Config, node.insecure),
       "allow plain tcp beyond loopback: anyone on the network can then read and submit"},
      {"node", "metrics_listen", SLUICE_FIELD(Config, node.metrics_listen),
       "where Prometheus finds /metrics over HTTP: tcp://HOST:PORT; empty: nowhere"},
      {"node", "drain_ms", SLUICE_FIELD(Config, drain_ms),
       "at SIGTERM, how long running streams may take to finish"},
      {"node", "tokenizer_threads", SLUICE_FIELD(Config, node.tokenizer_threads),
       "workers that turn text into tokens", 1, 256},
      {"node", "streamers", SLUICE_FIELD(Config, node.streamers),
       "workers that turn tokens into chunks; streams are spread over them", 1, 256},
      {"node", "weight_cache", SLUICE_FIELD(Config, node.weight_cache),
       "folder where the cpu's packed weights are kept, so that the next start need not pack them; "
       "empty: nowhere"},
      {"node", "weight_cache_bytes", SLUICE_FIELD(Config, node.weight_cache_bytes),
       "most that it may hold; what was not used for longest goes first", 0, 16384 * gigabyte},
      {"node", "log_level", SLUICE_FIELD(Config, node.log_level), "least severe line logged", 0, 0,
       1, "trace|debug|info|warn|error|off"},
      {"node", "log_file", SLUICE_FIELD(Config, node.log_file), "where; empty: stderr"},
      {"node", "log_prompts", SLUICE_FIELD(Config, node.log_prompts),
       "log prompts too; for debugging only"},

      {"node", "roles", SLUICE_FIELD(Config, node.roles),
       "what runs here, the rest on other nodes; empty: everything. Any of", 0, 0, 1,
       "front|tokenizer|engine|executor"},
      {"node", "ends_with_executor", SLUICE_FIELD(Config, node.ends_with_executor),
       "the process ends when an executor of it does, for who starts it again"},

      {"peers", "name", SLUICE_FIELD(Config, node.peers.name),
       "of this node, unique among those that talk to each other; empty: drawn at random"},
      {"peers", "listen", SLUICE_FIELD(Config, node.peers.listen),
       "where other nodes connect: tcp://HOST:PORT (port 0: any free one), ipc://PATH; empty: "
       "nowhere"},
      {"peers", "join", SLUICE_FIELD(Config, node.peers.join),
       "nodes to connect to: where, as its peers.listen says, and its name in security.nodes "
       "behind a space; without a name: plain"},
      {"peers", "local_listen", SLUICE_FIELD(Config, node.peers.local_listen),
       "a second one, for processes of this host: ipc://PATH, always plain"},
      {"peers", "collectives", SLUICE_FIELD(Config, node.peers.collectives),
       "this host's address for what tensor-parallel ranks exchange in a step; encrypted, unless "
       "both ranks are on loopback"},
      {"peers", "group_start_ms", SLUICE_FIELD(Config, node.peers.group_start_ms),
       "how long a group may take to form before who is missing is named and it starts anew", 100,
       3600000},
      {"peers", "step_ms", SLUICE_FIELD(Config, node.peers.step_ms),
       "longest that a rank waits for the others within a step", 10, 3600000},
      {"peers", "lost_ms", SLUICE_FIELD(Config, node.peers.lost_ms),
       "a node silent for so long is lost", 50, 600000},
      {"peers", "message_bytes_max", SLUICE_FIELD(Config, node.peers.message_bytes_max),
       "largest message taken from a node", 65536, gigabyte},

      {"endpoint", "listen", SLUICE_FIELD(Config, node.endpoint.listen),
       "where clients connect: tcp://HOST:PORT (port 0: any free one), ipc://PATH"},
      {"endpoint", "publish", SLUICE_FIELD(Config, node.endpoint.publish),
       "where subscribers connect; empty: derived from `listen`"},
      {"endpoint", "client_queue_messages",
       SLUICE_FIELD(Config, node.endpoint.client_queue_messages),
       "messages waiting for one client before its connection counts as lost", 16, 1e6},
      {"endpoint", "subscriber_queue_messages",
       SLUICE_FIELD(Config, node.endpoint.subscriber_queue_messages),
       "messages waiting for one subscriber before it misses some", 16, 1e6},
      {"endpoint", "subscriptions_max", SLUICE_FIELD(Config, node.endpoint.subscriptions_max),
       "subscriptions to streams, there or not yet there", 1, 1e7},
      {"endpoint", "heartbeat_ms", SLUICE_FIELD(Config, node.endpoint.heartbeat_ms),
       "a connection silent for three of these is lost", 100, 600000},
      {"endpoint", "handshake_ms", SLUICE_FIELD(Config, node.endpoint.handshake_ms),
       "a connection that has not said who it is by then is closed", 100, 600000},
      {"endpoint", "stalled_ms", SLUICE_FIELD(Config, node.endpoint.stalled_ms),
       "a client over TCP that takes nothing for so long, while something waits for it, is "
       "disconnected",
       5000, 600000},

      {"security", "keys", SLUICE_FIELD(Config, security.keys),
       "secret key file from `sluice keygen`: clients must speak CURVE; empty: plain"},
      {"security", "clients", SLUICE_FIELD(Config, security.clients),
       "allow list: a [[client]] each, with name, public_key, tenant, requests_per_s, streams"},
      {"security", "node_keys", SLUICE_FIELD(Config, security.node_keys),
       "secret key file towards other nodes; empty: `keys`"},
      {"security", "nodes", SLUICE_FIELD(Config, security.nodes),
       "allow list of other nodes: a [[node]] each, with its peers.name as name, and public_key"},

      {"limits", "frame_bytes_max", SLUICE_FIELD(Config, node.endpoint.limits.frame_bytes_max),
       "largest message taken", 1024, gigabyte},
      {"limits", "tokens_max", SLUICE_FIELD(Config, node.endpoint.limits.tokens_max),
       "most token ids in a message", 1, 1e8},
      {"limits", "text_bytes_max", SLUICE_FIELD(Config, node.endpoint.limits.text_bytes_max),
       "longest text in a message", 1, gigabyte},
      {"limits", "chat_messages_max", SLUICE_FIELD(Config, node.endpoint.limits.chat_messages_max),
       "most chat messages in a prompt", 1, 1e6},
      {"limits", "stops_max", SLUICE_FIELD(Config, node.endpoint.limits.stops_max),
       "most stop strings of a request", 0, 1024},
      {"limits", "stop_bytes_max", SLUICE_FIELD(Config, node.endpoint.limits.stop_bytes_max),
       "longest stop string", 1, 65536},
      {"limits", "logit_bias_max", SLUICE_FIELD(Config, node.endpoint.limits.logit_bias_max),
       "most logit biases of a request", 0, 1e6},
      {"limits", "name_bytes_max", SLUICE_FIELD(Config, node.endpoint.limits.name_bytes_max),
       "longest model or client name", 16, 65536},

      {"stream", "window_tokens", SLUICE_FIELD(Config, node.stream.window_tokens),
       "unacknowledged tokens at which live chunks pause", 16, 1e7},
      {"stream", "chunk_tokens_max", SLUICE_FIELD(Config, node.stream.chunk_tokens_max),
       "most tokens of a replayed chunk", 1, 1e6},
      {"stream", "resend_ms", SLUICE_FIELD(Config, node.stream.resend_ns),
       "a terminal is repeated this often until acknowledged", 10, 600000, ns_per_ms},
      {"stream", "retention_ms", SLUICE_FIELD(Config, node.stream.retention_ns),
       "how long a finished stream can be replayed", 0, 86400000, ns_per_ms},
      {"stream", "retention_bytes", SLUICE_FIELD(Config, node.stream.retention_bytes),
       "what all finished streams may hold, in each streamer; the oldest go first", 0, 1e12},
      {"stream", "grace_ms", SLUICE_FIELD(Config, node.stream.grace_ns),
       "how long a stream that nobody follows goes on", 0, 86400000, ns_per_ms},

      {"site", "name", SLUICE_FIELD(Config, node.site.name), "where this node runs, in receipts"},
      {"site", "cloud", SLUICE_FIELD(Config, node.site.cloud), "its vendor"},
      {"site", "region", SLUICE_FIELD(Config, node.site.region), "its region"},
      {"site", "jurisdiction", SLUICE_FIELD(Config, node.site.jurisdiction),
       "whose law applies, e.g. \"EU\"; requests may be limited to some"},
      {"site", "price_per_million_tokens", SLUICE_FIELD(Config, node.site.price_per_million_tokens),
       "of completion tokens, in the site's currency", 0, 1e9},
  };
  return keys;
}

const std::vector<EngineKey>& engine_keys() {
  using actors::EngineConfig;
  static const std::vector<EngineKey> keys = {
      {"engine", "name", SLUICE_FIELD(EngineConfig, name),
       "what requests pick it by; empty: the file's name without its ending, or the folder's"},
      {"engine", "model", SLUICE_FIELD(EngineConfig, model),
       "a GGUF file, or the folder of a safetensors model"},
      {"engine", "backend", SLUICE_FIELD(EngineConfig, backend), "what computes", 0, 0, 1,
       "auto|cpu|cuda"},
      {"engine", "device", SLUICE_FIELD(EngineConfig, device), "cuda: which of its devices", 0,
       1023},
      {"engine", "quantization", SLUICE_FIELD(EngineConfig, quantization),
       "cuda: fp8 keeps layers' bf16, f16 or f32 matrices in 8 bits, with a scale for each output; "
       "empty: as the file has them",
       0, 0, 1, "|fp8"},
      {"engine", "kv_cache_dtype", SLUICE_FIELD(EngineConfig, kv_cache_dtype),
       "cuda: fp8 keeps keys and values in 8 bits, so that twice as many tokens fit; auto: in 16",
       0, 0, 1, "auto|fp8"},
      {"engine", "tensor_parallel", SLUICE_FIELD(EngineConfig, tensor_parallel),
       "executors that share the model, each with a part of it", 1, 1024},
      {"engine", "ranks", SLUICE_FIELD(EngineConfig, ranks),
       "how many of them this node starts; 0: all where the batcher is, one elsewhere", 0, 1024},
      {"engine", "isolate", SLUICE_FIELD(EngineConfig, isolate),
       "whether the executor is a process of its own, so that a lost device costs that alone; "
       "auto: on CUDA",
       0, 0, 1, "auto|on|off"},
      {"engine", "threads", SLUICE_FIELD(EngineConfig, threads),
       "0: one a core, or as many as a container may use", 0, 1024},
      {"engine", "slots", SLUICE_FIELD(EngineConfig, slots), "sequences running at once", 1, 65536},
      {"engine", "context_tokens", SLUICE_FIELD(EngineConfig, context_tokens),
       "longest sequence; 0: the model's own, as far as the KV pool holds one", 0, 1e8},
      {"engine", "kv_bytes", SLUICE_FIELD(EngineConfig, kv_bytes),
       "KV pool; 0: slots x context, at most a quarter of the free memory of machine or container, "
       "or of a GPU's 19/20 of what the weights leave",
       0, 16384 * gigabyte},
      {"engine", "step_rows", SLUICE_FIELD(EngineConfig, step_rows),
       "rows of a step: smaller keeps stalls short, larger reads prompts faster", 1, 65536},
      {"engine", "itl_target_ms", SLUICE_FIELD(EngineConfig, itl_target_ms),
       "what a step that reads prompts may take while others decode; 0: 8/5 of one that does not "
       "or 8 ms more, and at times 50 ms more for a short prompt",
       0, 60'000},
      {"engine", "prefix_cache", SLUICE_FIELD(EngineConfig, prefix_cache),
       "use the keys and values of a prompt's beginning again that was seen before"},
      {"engine", "queue", SLUICE_FIELD(EngineConfig, queue),
       "waiting requests; beyond, they are refused as `overloaded`", 0, 1e6},
      {"engine", "chat_format", SLUICE_FIELD(EngineConfig, chat_format),
       "instead of what the file's template is recognised as; empty: that", 0, 0, 1,
       "|chatml|llama2|llama3|gemma|mistral|zephyr"},
  };
  return keys;
}

const std::vector<ClientKey>& client_keys() {
  static const std::vector<ClientKey> keys = {
      {"client", "name", SLUICE_FIELD(ClientEntry, grant.name), "for people; in messages and logs"},
      {"client", "public_key", SLUICE_FIELD(ClientEntry, public_key),
       "what `sluice keygen` printed: 40 characters"},
      {"client", "tenant", SLUICE_FIELD(ClientEntry, grant.tenant),
       "whose share its requests take, whatever they say; empty: the name"},
      {"client", "requests_per_s", SLUICE_FIELD(ClientEntry, grant.requests_per_s),
       "submits a second, and as many at once; beyond: `overloaded`; 0: no limit", 0, 1e6},
      {"client", "streams", SLUICE_FIELD(ClientEntry, grant.streams),
       "unfinished at once; beyond: `overloaded`; 0: no limit", 0, 1e6},
  };
  return keys;
}

const std::vector<PeerKey>& peer_keys() {
  static const std::vector<PeerKey> keys = {
      {"node", "name", SLUICE_FIELD(NodeEntry, name), "for people; in messages and logs"},
      {"node", "public_key", SLUICE_FIELD(NodeEntry, public_key),
       "what `sluice keygen` printed: 40 characters"},
  };
  return keys;
}

#undef SLUICE_FIELD

}  // namespace sluice::cli
