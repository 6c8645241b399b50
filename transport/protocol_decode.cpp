// msgpack maps to structs. A first walk over the frame checks its shape and builds nothing; then
// every key is checked for type and limit before anything is allocated for it.

#include "transport/msgpack_reader.hpp"
#include "transport/protocol.hpp"

namespace sluice::transport {
namespace {

void read(Reader& in, Hello& m) {
  in.integer("version_min", m.version_min, Need::required);
  in.integer("version_max", m.version_max, Need::required);
  in.text("client", m.client, in.limits.name_bytes_max);
}

void read(Reader& in, Welcome& m) {
  const std::size_t name = in.limits.name_bytes_max;
  in.integer("version", m.version, Need::required);
  in.text("server", m.server, name);
  in.text("site", m.site, name);
  in.text("publish", m.publish, name, Need::required);
  in.integer("frame_bytes_max", m.frame_bytes_max);
  in.integer("window_tokens", m.window_tokens);
  in.list("models", in.limits.models_max, Need::optional, [&](const Object& item) {
    ModelInfo& model = m.models.emplace_back();
    Reader inner = in.inner("models", item);
    if (in.failed()) return;
    inner.text("name", model.name, name, Need::required);
    inner.text("numerics", model.numerics, name);
    inner.text("backend", model.backend, name);
    inner.text("chat_format", model.chat_format, name);
    inner.integer("context_tokens", model.context_tokens);
    inner.integer("vocabulary", model.vocabulary);
  });
}

void read_prompt(Reader& in, Prompt& prompt) {
  const Object* value = in.find("prompt", Need::required);
  if (value == nullptr) return;
  if (value->type == msgpack::type::STR)
    return in.text_value("prompt", *value, prompt.emplace<std::string>(), in.limits.text_bytes_max);
  if (value->type != msgpack::type::ARRAY)
    return in.refuse("prompt", "must be a string, an array of token ids or an array of messages");
  if (value->via.array.size == 0) return in.refuse("prompt", "is empty");
  if (value->via.array.ptr[0].type != msgpack::type::MAP)
    return in.integers_value("prompt", *value, prompt.emplace<std::vector<Token>>(),
                             in.limits.tokens_max);
  auto& chat = prompt.emplace<std::vector<ChatMessage>>();
  std::size_t text_bytes = 0;
  in.list_value("prompt", *value, in.limits.chat_messages_max, [&](const Object& item) {
    ChatMessage& message = chat.emplace_back();
    Reader inner = in.inner("prompt", item);
    if (in.failed()) return;
    inner.text("role", message.role, in.limits.name_bytes_max, Need::required);
    inner.text("content", message.content, in.limits.text_bytes_max, Need::required);
    text_bytes += message.content.size();
    if (text_bytes > in.limits.text_bytes_max)
      in.too_large("prompt", text_bytes, in.limits.text_bytes_max, "bytes of text");
  });
}

void read_sampling(Reader& in, engine::SamplingParams& s) {
  const auto between = [](float least, float most) {
    return [=](float x) { return x >= least && x <= most; };
  };
  in.number("temperature", s.temperature, between(0, 1e6F), "from 0 to 1e6");
  in.integer("top_k", s.top_k);
  in.number(
      "top_p", s.top_p, [](float x) { return x > 0 && x <= 1; }, "above 0 and at most 1");
  in.number("min_p", s.min_p, between(0, 1), "from 0 to 1");
  in.number(
      "repetition_penalty", s.repetition_penalty, [](float x) { return x > 0 && x <= 100; },
      "above 0 and at most 100");
  in.number("presence_penalty", s.presence_penalty, between(-2, 2), "from -2 to 2");
  in.number("frequency_penalty", s.frequency_penalty, between(-2, 2), "from -2 to 2");
  in.list("logit_bias", in.limits.logit_bias_max, Need::optional, [&](const Object& item) {
    auto& [token, bias] = s.logit_bias.emplace_back();
    in.pair("logit_bias", item, token, bias, between(-100, 100), "from -100 to 100");
  });
  std::sort(s.logit_bias.begin(), s.logit_bias.end());
  const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
  if (std::adjacent_find(s.logit_bias.begin(), s.logit_bias.end(), same) != s.logit_bias.end())
    in.refuse("logit_bias", "names a token twice");
  in.integer("seed", s.seed);
  in.integer("min_tokens", s.min_tokens);
  in.integers("stop_tokens", s.stop_tokens, in.limits.stop_tokens_max);
  in.integer("logprobs", s.logprobs, Need::optional, 0,
             static_cast<std::int32_t>(in.limits.logprobs_max));
}

void read_resume(Reader& in, Submit& m) {
  std::size_t tokens = 0;
  in.list("resume_tokens", in.limits.choices_max, Need::optional, [&](const Object& item) {
    auto& held = m.resume_tokens.emplace_back();
    in.integers_value("resume_tokens", item, held, in.limits.tokens_max - tokens);
    tokens += held.size();
  });
  in.integers("resume_text_bytes", m.resume_text_bytes, in.limits.choices_max);
  in.text("resume_numerics", m.resume_numerics, in.limits.name_bytes_max);
  in.boolean("allow_inexact", m.allow_inexact);
  if (!m.resume_tokens.empty() && m.resume_tokens.size() != m.n)
    in.refuse("resume_tokens", "must have one list for each of the n choices");
  if (m.resume_text_bytes.size() != m.resume_tokens.size())
    in.refuse("resume_text_bytes", "must have as many elements as resume_tokens");
}

void read_constraint(Reader& in, engine::Constraint& constraint) {
  using Kind = engine::Constraint::Kind;
  for (const auto& [key, kind] : {std::pair("regex", Kind::regex),
                                  std::pair("json_schema", Kind::json_schema)}) {
    if (in.find(key) == nullptr) continue;
    if (constraint) in.refuse(key, "and another constraint exclude each other");
    constraint.kind = kind;
    in.text(key, constraint.text, in.limits.constraint_bytes_max);
  }
}

void read(Reader& in, Submit& m) {
  in.name16("stream", m.stream);
  in.name16("owner", m.owner);
  in.integer("epoch", m.epoch);
  in.text("model", m.model, in.limits.name_bytes_max);
  read_prompt(in, m.prompt);
  if (const Object* sampling = in.find("sampling")) {
    Reader inner = in.inner("sampling", *sampling);
    if (!in.failed()) read_sampling(inner, m.sampling);
  }
  in.integer<std::uint32_t>("n", m.n, Need::optional, 1, in.limits.choices_max);
  in.integer("max_tokens", m.max_tokens);
  in.texts("stops", m.stops, in.limits.stops_max, in.limits.stop_bytes_max);
  if (std::find(m.stops.begin(), m.stops.end(), "") != m.stops.end())
    in.refuse("stops", "must not hold an empty string");
  read_constraint(in, m.constraint);
  in.boolean("ignore_eos", m.ignore_eos);
  in.integer("priority", m.priority);
  in.text("tenant", m.tenant, in.limits.name_bytes_max);
  in.integer("deadline_ms", m.deadline_ms);
  in.texts("jurisdictions", m.jurisdictions, in.limits.jurisdictions_max, in.limits.name_bytes_max);
  read_resume(in, m);
  if (m.max_tokens != 0 && m.sampling.min_tokens > m.max_tokens)
    in.refuse("sampling.min_tokens", "must not exceed max_tokens");
}

void read(Reader& in, Accepted& m) {
  in.name16("stream", m.stream);
  in.integer("epoch", m.epoch);
  in.text("numerics", m.numerics, in.limits.name_bytes_max);
  in.integer("prompt_tokens", m.prompt_tokens);
  in.bytes16("chain", m.chain, Need::required);
}

void read(Reader& in, Chunk& m) {
  in.name16("stream", m.stream);
  in.integer("epoch", m.epoch);
  in.integer("choice", m.choice);
  in.integer("index", m.part.first_index, Need::required);
  in.integers("tokens", m.part.tokens, in.limits.tokens_max, Need::required);
  in.text("text", m.part.text, in.limits.text_bytes_max);
  in.integer("text_offset", m.part.text_offset);
  in.bytes16("chain", m.part.chain, Need::required);
  in.list("logprobs", m.part.tokens.size(), Need::optional, [&](const Object& token) {
    auto& best = m.part.logprobs.emplace_back();
    in.list_value("logprobs", token, in.limits.logprobs_max + 1, [&](const Object& item) {
      auto& [id, logprob] = best.emplace_back();
      in.pair(
          "logprobs", item, id, logprob, [](float) { return true; }, "a number");
    });
  });
  if (!m.part.logprobs.empty() && m.part.logprobs.size() != m.part.tokens.size())
    in.refuse("logprobs", "must have one list a token");
  if (m.part.tokens.size() > std::numeric_limits<std::uint32_t>::max() - m.part.first_index)
    in.refuse("index", "leaves no room for the tokens");
}

engine::FinishReason finish_reason(Reader& in, std::string_view name) {
  using enum engine::FinishReason;
  for (const auto reason : {stop, length, cancelled})
    if (to_string(reason) == name) return reason;
  in.refuse("finish", "must be stop, length or cancelled");
  return none;
}

void read(Reader& in, Receipt& m) {
  const std::size_t name = in.limits.name_bytes_max;
  const auto finite = [](double x) { return std::isfinite(x) && x >= 0; };
  in.text("model", m.model, name);
  in.text("numerics", m.numerics, name);
  in.text("backend", m.backend, name);
  in.text("site", m.site, name);
  in.text("jurisdiction", m.jurisdiction, name);
  in.number("queue_ms", m.queue_ms, finite, "at least 0");
  in.number("prefill_ms", m.prefill_ms, finite, "at least 0");
  in.number("decode_ms", m.decode_ms, finite, "at least 0");
  in.number("device_seconds", m.device_seconds, finite, "at least 0");
  in.number("price", m.price, finite, "at least 0");
  in.integer("prompt_tokens", m.prompt_tokens);
  in.integer("cached_tokens", m.cached_tokens);
  in.integer("completion_tokens", m.completion_tokens);
}

void read(Reader& in, Done& m) {
  in.name16("stream", m.stream);
  in.integer("epoch", m.epoch);
  in.list("finish", in.limits.choices_max, Need::required, [&](const Object& item) {
    std::string name;
    in.text_value("finish", item, name, in.limits.name_bytes_max);
    if (!in.failed()) m.finish.push_back(finish_reason(in, name));
  });
  in.integers("tokens", m.tokens, in.limits.choices_max, Need::required);
  in.integers("text_bytes", m.text_bytes, in.limits.choices_max, Need::required);
  if (m.tokens.size() != m.finish.size() || m.text_bytes.size() != m.finish.size())
    in.refuse("tokens", "and text_bytes must have as many elements as finish");
  if (const Object* receipt = in.find("receipt")) {
    Reader inner = in.inner("receipt", *receipt);
    if (!in.failed()) read(inner, m.receipt);
  }
}

void read(Reader& in, Failed& m) {
  StreamId stream{};
  in.bytes16("stream", stream);
  if (stream != StreamId{}) m.stream = stream;
  in.integer("epoch", m.epoch);
  std::string code;
  in.text("code", code, in.limits.name_bytes_max, Need::required);
  in.text("message", m.error.message, in.limits.explanation_bytes_max);
  in.integer("retry_after_ms", m.error.retry_after_ms);
  // A code from a later version is still an error; which one is told by its message.
  m.error.code = ErrorCode::internal;
  for (std::uint8_t i = 0; i <= static_cast<std::uint8_t>(ErrorCode::internal); ++i)
    if (to_string(static_cast<ErrorCode>(i)) == code) m.error.code = static_cast<ErrorCode>(i);
}

void read(Reader& in, Cancel& m) {
  in.name16("stream", m.stream);
  in.name16("owner", m.owner);
  in.integer("epoch", m.epoch);
}

void read(Reader& in, Attach& m) {
  in.name16("stream", m.stream);
  in.bytes16("owner", m.owner);
  in.integer("choice", m.choice);
  in.integer("index", m.index, Need::required);
  in.boolean("live", m.live);
}

void read(Reader& in, Ack& m) {
  in.name16("stream", m.stream);
  in.bytes16("owner", m.owner);
  in.integer("choice", m.choice);
  in.integer("index", m.index, Need::required);
  in.boolean("terminal", m.terminal);
}

void read(Reader&, StatsRequest&) {}

void read(Reader& in, Stats& m) {
  const Object* values = in.find("values", Need::required);
  if (values == nullptr) return;
  if (values->type != msgpack::type::MAP) return in.refuse("values", "must be a map");
  if (values->via.map.size > in.limits.values_max)
    return in.too_large("values", values->via.map.size, in.limits.values_max, "elements");
  for (std::uint32_t i = 0; i < values->via.map.size && !in.failed(); ++i) {
    auto& [name, number] = m.values.emplace_back();
    in.text_value("values", values->via.map.ptr[i].key, name, in.limits.name_bytes_max);
    if (!in.failed())
      in.number_value(
          "values", values->via.map.ptr[i].val, number, [](double) { return true; }, "a number");
  }
  std::sort(m.values.begin(), m.values.end());
}

void read(Reader&, HealthRequest&) {}

void read(Reader& in, Health& m) {
  in.boolean("ready", m.ready, Need::required);
  in.text("why", m.why, in.limits.explanation_bytes_max);
}

template <class T>
Message read_as(Reader& in) {
  T message;
  read(in, message);
  return message;
}

struct Kind {
  std::string_view name;
  Message (*read)(Reader&);
};
constexpr Kind kinds[] = {
    {"chunk", read_as<Chunk>},
    {"ack", read_as<Ack>},
    {"submit", read_as<Submit>},
    {"accepted", read_as<Accepted>},
    {"done", read_as<Done>},
    {"error", read_as<Failed>},
    {"attach", read_as<Attach>},
    {"cancel", read_as<Cancel>},
    {"hello", read_as<Hello>},
    {"welcome", read_as<Welcome>},
    {"get_stats", read_as<StatsRequest>},
    {"stats", read_as<Stats>},
    {"get_health", read_as<HealthRequest>},
    {"health", read_as<Health>},
};

Result<Message> read_message(const Object& object, const Limits& limits) {
  if (object.type != msgpack::type::MAP)
    return fail(ErrorCode::bad_request, "the frame is not a msgpack map");
  std::optional<Error> error;
  Reader outer("", object, limits, error);
  std::string type;
  outer.text("type", type, limits.name_bytes_max, Need::required);
  if (error) return tl::unexpected(std::move(*error));
  for (const Kind& kind : kinds) {
    if (kind.name != type) continue;
    Reader in(type + ": ", object, limits, error);
    Message message = kind.read(in);
    if (error) return tl::unexpected(std::move(*error));
    return message;
  }
  return fail(ErrorCode::unsupported, "type \"{}\" is unknown in version {} of the protocol", type,
              protocol_version);
}

}  // namespace

Result<Message> decode(std::string_view frame, const Limits& limits) {
  if (frame.size() > limits.frame_bytes_max)
    return fail(ErrorCode::too_large, "the frame has {} bytes; the limit is {}", frame.size(),
                limits.frame_bytes_max);
  try {
    Shape shape(frame, limits);
    std::size_t used = 0;
    const bool whole = msgpack::parse(frame.data(), frame.size(), used, shape);
    if (shape.too_deep())
      return fail(ErrorCode::too_large, "the frame nests deeper than {}", limits.depth_max);
    if (shape.too_many_keys())
      return fail(ErrorCode::too_large, "the frame has a map of more than {} keys",
                  limits.map_keys_max);
    if (!whole) return fail(ErrorCode::bad_request, "the frame is not one whole msgpack value");
    if (used != frame.size())
      return fail(ErrorCode::bad_request, "the frame has {} bytes after its msgpack value",
                  frame.size() - used);
    // Strings and binaries stay in the frame; they are copied once, after their limit was checked.
    const auto keep = [](msgpack::type::object_type, std::size_t, void*) { return true; };
    msgpack::zone zone(1024);
    used = 0;
    const Object object = msgpack::unpack(zone, frame.data(), frame.size(), used, keep);
    return read_message(object, limits);
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::out_of_memory, "no memory to decode a frame of {} bytes", frame.size());
  } catch (const std::exception& error) {
    return fail(ErrorCode::bad_request, "the frame is no msgpack: {}", error.what());
  }
}

Subject subject_of(std::string_view frame, const Limits& limits) {
  Subject none;
  if (frame.size() > limits.frame_bytes_max) return none;
  try {
    Shape shape(frame, limits);
    std::size_t used = 0;
    msgpack::parse(frame.data(), frame.size(), used, shape);
    return shape.subject();
  } catch (const std::exception&) {
    return none;
  }
}

}  // namespace sluice::transport
