// Structs to msgpack maps. Answers carry every key; requests leave out what equals its default.

#define MSGPACK_NO_BOOST
#include <bit>
#include <msgpack.hpp>

#include "transport/protocol.hpp"

namespace sluice::transport {
namespace {

struct Sink {
  std::string bytes;
  void write(const char* data, std::size_t size) { bytes.append(data, size); }
};

using Packer = msgpack::packer<Sink>;

/// Writes a float as a float: the library's own pack() turns whole numbers into integers, which
/// typed languages then refuse to read as a float.
template <class T>
void pack_real(Sink& sink, T value) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const auto bits = std::bit_cast<Bits>(value);
  sink.bytes.push_back(static_cast<char>(sizeof(T) == 4 ? 0xca : 0xcb));
  for (int shift = sizeof(T) * 8 - 8; shift >= 0; shift -= 8)
    sink.bytes.push_back(static_cast<char>(bits >> shift & 0xffU));
}

/// A map under construction. How many keys it has shows only at its end, so the header, one byte up
/// to 15 keys, is written last.
class Map {
 public:
  explicit Map(Sink& sink) : sink_(sink), pack_(sink), start_(sink.bytes.size()) {
    sink_.bytes.push_back('\0');
  }
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;
  ~Map() {
    if (keys_ <= 15) {
      sink_.bytes[start_] = static_cast<char>(0x80U | keys_);
      return;
    }
    sink_.bytes[start_] = static_cast<char>(0xde);
    const char size[2] = {static_cast<char>(keys_ >> 8U), static_cast<char>(keys_ & 0xffU)};
    sink_.bytes.insert(start_ + 1, size, 2);
  }

  Packer& key(std::string_view name) {
    ++keys_;
    text(name);
    return pack_;
  }

  void put(std::string_view name, std::string_view value) { key(name), text(value); }
  void put(std::string_view name, const char* value) { put(name, std::string_view(value)); }
  void put(std::string_view name, const std::string& value) { put(name, std::string_view(value)); }
  void put(std::string_view name, const StreamId& value) {
    key(name).pack_bin(static_cast<std::uint32_t>(value.size()));
    pack_.pack_bin_body(reinterpret_cast<const char*>(value.data()),
                        static_cast<std::uint32_t>(value.size()));
  }
  template <class T>
  void put(std::string_view name, T value) requires std::is_arithmetic_v<T> {
    key(name);
    if constexpr (std::is_floating_point_v<T>)
      pack_real(sink_, value);
    else
      pack_.pack(value);
  }
  template <class T>
  void put(std::string_view name, const std::vector<T>& values) {
    array(key(name), values);
  }
  /// Left out when it is the default.
  template <class T>
  void option(std::string_view name, const T& value, const T& otherwise) {
    if (!(value == otherwise)) put(name, value);
  }

 private:
  void text(std::string_view value) {
    pack_.pack_str(static_cast<std::uint32_t>(value.size()));
    pack_.pack_str_body(value.data(), static_cast<std::uint32_t>(value.size()));
  }
  template <class T>
  void array(Packer& pack, const std::vector<T>& values) {
    pack.pack_array(static_cast<std::uint32_t>(values.size()));
    for (const T& value : values) {
      if constexpr (std::is_same_v<T, std::string>)
        text(value);
      else if constexpr (std::is_arithmetic_v<T>)
        pack.pack(value);
      else
        array(pack, value);
    }
  }

  Sink& sink_;
  Packer pack_;
  std::size_t start_;
  std::uint32_t keys_ = 0;
};

void pack_logprobs(Packer& pack, Sink& sink,
                   const std::vector<std::vector<engine::TokenLogprob>>& tokens) {
  pack.pack_array(static_cast<std::uint32_t>(tokens.size()));
  for (const auto& best : tokens) {
    pack.pack_array(static_cast<std::uint32_t>(best.size()));
    for (const auto& [token, logprob] : best) {
      pack.pack_array(2);
      pack.pack(token);
      pack_real(sink, logprob);
    }
  }
}

void put_prompt(Map& map, Sink& sink, const Prompt& prompt) {
  if (const auto* chat = std::get_if<std::vector<ChatMessage>>(&prompt)) {
    map.key("prompt").pack_array(static_cast<std::uint32_t>(chat->size()));
    for (const ChatMessage& message : *chat) {
      Map item(sink);
      item.put("role", message.role);
      item.put("content", message.content);
    }
  } else if (const auto* tokens = std::get_if<std::vector<Token>>(&prompt)) {
    map.put("prompt", *tokens);
  } else {
    map.put("prompt", std::get<std::string>(prompt));
  }
}

void put_sampling(Map& map, Sink& sink, const engine::SamplingParams& sampling) {
  static const engine::SamplingParams none;
  if (sampling == none) return;
  map.key("sampling");
  Map inner(sink);
  inner.option("temperature", sampling.temperature, none.temperature);
  inner.option("top_k", sampling.top_k, none.top_k);
  inner.option("top_p", sampling.top_p, none.top_p);
  inner.option("min_p", sampling.min_p, none.min_p);
  inner.option("repetition_penalty", sampling.repetition_penalty, none.repetition_penalty);
  inner.option("presence_penalty", sampling.presence_penalty, none.presence_penalty);
  inner.option("frequency_penalty", sampling.frequency_penalty, none.frequency_penalty);
  if (!sampling.logit_bias.empty()) {
    Packer& pack = inner.key("logit_bias");
    pack.pack_array(static_cast<std::uint32_t>(sampling.logit_bias.size()));
    for (const auto& [token, bias] : sampling.logit_bias) {
      pack.pack_array(2);
      pack.pack(token);
      pack_real(sink, bias);
    }
  }
  inner.option("seed", sampling.seed, none.seed);
  inner.option("min_tokens", sampling.min_tokens, none.min_tokens);
  inner.option("stop_tokens", sampling.stop_tokens, none.stop_tokens);
  if (sampling.logprobs >= 0) inner.put("logprobs", sampling.logprobs);
}

void write(Map& map, Sink&, const Hello& m) {
  map.put("type", "hello");
  map.put("version_min", m.version_min);
  map.put("version_max", m.version_max);
  map.put("client", m.client);
}

void write(Map& map, Sink& sink, const Welcome& m) {
  map.put("type", "welcome");
  map.put("version", m.version);
  map.put("server", m.server);
  map.put("site", m.site);
  map.put("publish", m.publish);
  map.put("frame_bytes_max", m.frame_bytes_max);
  map.put("window_tokens", m.window_tokens);
  map.key("models").pack_array(static_cast<std::uint32_t>(m.models.size()));
  for (const ModelInfo& model : m.models) {
    Map item(sink);
    item.put("name", model.name);
    item.put("numerics", model.numerics);
    item.put("backend", model.backend);
    item.put("chat_format", model.chat_format);
    item.put("context_tokens", model.context_tokens);
    item.put("vocabulary", model.vocabulary);
  }
}

void write(Map& map, Sink& sink, const Submit& m) {
  static const Submit none;
  map.put("type", "submit");
  map.put("stream", m.stream);
  map.put("owner", m.owner);
  map.option("epoch", m.epoch, none.epoch);
  map.option("model", m.model, none.model);
  put_prompt(map, sink, m.prompt);
  put_sampling(map, sink, m.sampling);
  map.option("n", m.n, none.n);
  map.option("max_tokens", m.max_tokens, none.max_tokens);
  map.option("stops", m.stops, none.stops);
  if (m.constraint)
    map.put(m.constraint.kind == engine::Constraint::Kind::regex ? "regex" : "json_schema",
            m.constraint.text);
  map.option("ignore_eos", m.ignore_eos, none.ignore_eos);
  map.option("priority", m.priority, none.priority);
  map.option("tenant", m.tenant, none.tenant);
  map.option("deadline_ms", m.deadline_ms, none.deadline_ms);
  map.option("jurisdictions", m.jurisdictions, none.jurisdictions);
  map.option("resume_tokens", m.resume_tokens, none.resume_tokens);
  map.option("resume_text_bytes", m.resume_text_bytes, none.resume_text_bytes);
  map.option("resume_numerics", m.resume_numerics, none.resume_numerics);
  map.option("allow_inexact", m.allow_inexact, none.allow_inexact);
}

void write(Map& map, Sink&, const Accepted& m) {
  map.put("type", "accepted");
  map.put("stream", m.stream);
  map.put("epoch", m.epoch);
  map.put("numerics", m.numerics);
  map.put("prompt_tokens", m.prompt_tokens);
  map.put("chain", m.chain);
}

void write(Map& map, Sink& sink, const Chunk& m) {
  map.put("type", "chunk");
  map.put("stream", m.stream);
  map.put("epoch", m.epoch);
  map.put("choice", m.choice);
  map.put("index", m.part.first_index);
  map.put("tokens", m.part.tokens);
  map.put("text", m.part.text);
  map.put("text_offset", m.part.text_offset);
  map.put("chain", m.part.chain);
  if (!m.part.logprobs.empty()) pack_logprobs(map.key("logprobs"), sink, m.part.logprobs);
}

void write(Map& map, Sink& sink, const Done& m) {
  map.put("type", "done");
  map.put("stream", m.stream);
  map.put("epoch", m.epoch);
  std::vector<std::string> finish;
  for (const auto reason : m.finish) finish.emplace_back(to_string(reason));
  map.put("finish", finish);
  map.put("tokens", m.tokens);
  map.put("text_bytes", m.text_bytes);
  map.key("receipt");
  Map receipt(sink);
  receipt.put("model", m.receipt.model);
  receipt.put("numerics", m.receipt.numerics);
  receipt.put("backend", m.receipt.backend);
  receipt.put("site", m.receipt.site);
  receipt.put("jurisdiction", m.receipt.jurisdiction);
  receipt.put("queue_ms", m.receipt.queue_ms);
  receipt.put("prefill_ms", m.receipt.prefill_ms);
  receipt.put("decode_ms", m.receipt.decode_ms);
  receipt.put("device_seconds", m.receipt.device_seconds);
  receipt.put("price", m.receipt.price);
  receipt.put("prompt_tokens", m.receipt.prompt_tokens);
  receipt.put("cached_tokens", m.receipt.cached_tokens);
  receipt.put("completion_tokens", m.receipt.completion_tokens);
}

void write(Map& map, Sink&, const Failed& m) {
  map.put("type", "error");
  if (m.stream) map.put("stream", *m.stream);
  map.put("epoch", m.epoch);
  map.put("code", to_string(m.error.code));
  map.put("message", m.error.message);
  map.put("retry_after_ms", m.error.retry_after_ms);
}

void write(Map& map, Sink&, const Cancel& m) {
  map.put("type", "cancel");
  map.put("stream", m.stream);
  map.put("owner", m.owner);
  map.option("epoch", m.epoch, std::uint64_t{0});
}

void write(Map& map, Sink&, const Attach& m) {
  static const Attach none;
  map.put("type", "attach");
  map.put("stream", m.stream);
  map.option("owner", m.owner, none.owner);
  map.option("choice", m.choice, none.choice);
  map.put("index", m.index);
  map.option("live", m.live, none.live);
}

void write(Map& map, Sink&, const Ack& m) {
  static const Ack none;
  map.put("type", "ack");
  map.put("stream", m.stream);
  map.option("owner", m.owner, none.owner);
  map.option("choice", m.choice, none.choice);
  map.put("index", m.index);
  map.option("terminal", m.terminal, none.terminal);
}

void write(Map& map, Sink&, const StatsRequest&) { map.put("type", "get_stats"); }

void write(Map& map, Sink& sink, const Stats& m) {
  map.put("type", "stats");
  map.key("values").pack_map(static_cast<std::uint32_t>(m.values.size()));
  Packer pack(sink);
  for (const auto& [name, value] : m.values) {
    pack.pack(name);
    pack_real(sink, value);
  }
}

void write(Map& map, Sink&, const HealthRequest&) { map.put("type", "get_health"); }

void write(Map& map, Sink&, const Health& m) {
  map.put("type", "health");
  map.put("ready", m.ready);
  map.put("why", m.why);
}

}  // namespace

std::string encode(const Message& message) {
  Sink sink;
  sink.bytes.reserve(256);  // most messages are chunks of few tokens
  {
    Map map(sink);
    std::visit([&](const auto& m) { write(map, sink, m); }, message);
  }
  return std::move(sink.bytes);
}

}  // namespace sluice::transport
