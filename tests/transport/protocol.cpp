// Shows that every message survives its bytes, that the bytes are those an independent msgpack
// library writes (scripts/fixtures/protocol.py), and that a value of a wrong type is refused by its
// key's name. Random messages come from fixed seeds; mistyped ones by putting a value of every
// wrong type in the place of every key's value.

#include "transport/protocol.hpp"

#define MSGPACK_NO_BOOST
#include <sodium.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <map>
#include <msgpack.hpp>
#include <random>
#include <set>

#include "tests/transport/messages.hpp"

using namespace sluice;
using namespace sluice::transport;
using namespace sluice::transport::testing;

namespace {

struct Random {
  std::mt19937_64 engine;
  std::uint64_t below(std::uint64_t n) { return engine() % n; }
  bool coin() { return below(2) == 0; }
  StreamId id() {
    StreamId out;
    for (auto& byte : out) byte = static_cast<std::uint8_t>(below(256));
    out[0] |= 1;
    return out;
  }
  std::uint64_t u64() { return engine() >> below(64); }  // of every magnitude
  std::uint32_t u32() { return static_cast<std::uint32_t>(engine() >> (32 + below(32))); }
  std::string text(std::size_t most) {
    static const std::string pieces[] = {"a", "Ω", "€", "👋", "\n", std::string(1, '\0'), " the"};
    std::string out;
    for (auto n = below(12); n > 0; --n) out += pieces[below(7)];
    if (out.size() > most) out.clear();
    return out;
  }
  float real(float least, float most) {
    return least + (most - least) * static_cast<float>(below(1 << 20)) / float{1 << 20};
  }
  std::vector<Token> tokens(std::uint64_t most) {
    std::vector<Token> out(below(most + 1));
    for (auto& token : out) token = u32();
    return out;
  }
};

Prompt random_prompt(Random& r) {
  switch (r.below(3)) {
    case 0: return r.text(200);
    case 1: {
      auto tokens = r.tokens(40);
      tokens.push_back(1);
      return tokens;
    }
    default: {
      std::vector<ChatMessage> chat(1 + r.below(5));
      for (auto& message : chat) message = {r.text(200), r.text(200)};
      return chat;
    }
  }
}

Submit random_submit(Random& r) {
  Submit m;
  m.stream = r.id();
  m.owner = r.id();
  m.epoch = r.u64();
  m.model = r.text(200);
  m.prompt = random_prompt(r);
  auto& s = m.sampling;
  if (r.coin()) s.temperature = r.real(0, 4);
  if (r.coin()) s.top_k = r.u32();
  if (r.coin()) s.top_p = r.real(0.01F, 1);
  if (r.coin()) s.min_p = r.real(0, 1);
  if (r.coin()) s.repetition_penalty = r.real(0.5F, 2);
  if (r.coin()) s.presence_penalty = r.real(-2, 2);
  if (r.coin()) s.frequency_penalty = r.real(-2, 2);
  if (r.coin()) s.seed = r.u64();
  if (r.coin()) s.logprobs = static_cast<std::int32_t>(r.below(21));
  std::map<Token, float> bias;
  for (auto n = r.below(5); n > 0; --n) bias[r.u32()] = r.real(-100, 100);
  s.logit_bias.assign(bias.begin(), bias.end());
  s.stop_tokens = r.tokens(4);
  m.n = 1 + static_cast<std::uint32_t>(r.below(16));
  m.max_tokens = r.u32();
  if (m.max_tokens != 0) s.min_tokens = static_cast<std::uint32_t>(r.below(m.max_tokens));
  for (auto n = r.below(4); n > 0; --n) m.stops.push_back("x" + r.text(200));
  m.constraint.kind = static_cast<engine::Constraint::Kind>(r.below(3));
  if (m.constraint) m.constraint.text = r.text(200);
  m.ignore_eos = r.coin();
  m.priority = static_cast<std::int32_t>(r.u32());
  m.tenant = r.text(200);
  m.deadline_ms = r.u32();
  for (auto n = r.below(4); n > 0; --n) m.jurisdictions.push_back(r.text(200));
  if (r.coin()) {
    for (std::uint32_t i = 0; i < m.n; ++i) {
      m.resume_tokens.push_back(r.tokens(10));
      m.resume_text_bytes.push_back(r.u64());
    }
    m.resume_numerics = r.text(200);
  }
  m.allow_inexact = r.coin();
  return m;
}

Chunk random_chunk(Random& r) {
  Chunk m{r.id(), r.u64(), r.u32(), {}};
  m.part.first_index = r.u32() / 2;
  m.part.tokens = r.tokens(10);
  m.part.text = r.text(200);
  m.part.text_offset = r.u64();
  m.part.chain = r.id();
  if (r.coin()) {
    m.part.logprobs.resize(m.part.tokens.size());
    for (auto& best : m.part.logprobs)
      for (auto n = r.below(4); n > 0; --n) best.push_back({r.u32(), r.real(-30, 0)});
  }
  return m;
}

Done random_done(Random& r) {
  Done m{r.id(), r.u64(), {}, {}, {}, {}};
  for (auto n = r.below(4); n > 0; --n) {
    using enum engine::FinishReason;
    const engine::FinishReason reasons[] = {stop, length, cancelled};
    m.finish.push_back(reasons[r.below(3)]);
    m.tokens.push_back(r.u32());
    m.text_bytes.push_back(r.u64());
  }
  m.receipt = {r.text(99),   r.text(99),   r.text(99),   r.text(99),   r.text(99),
               r.real(0, 9), r.real(0, 9), r.real(0, 9), r.real(0, 9), r.real(0, 9),
               r.u32(),      r.u32(),      r.u32()};
  return m;
}

Welcome random_welcome(Random& r) {
  Welcome m{r.u32(), r.text(99), r.text(99), r.text(99), {}, r.u32(), r.u32()};
  for (auto n = r.below(4); n > 0; --n)
    m.models.push_back({r.text(99), r.text(99), r.text(99), r.text(99), r.u32(), r.u32()});
  return m;
}

Failed random_failed(Random& r) {
  Failed m;
  if (r.coin()) m.stream = r.id();
  m.epoch = r.u64();
  m.error = {static_cast<ErrorCode>(r.below(17)), r.text(200), r.u32()};
  return m;
}

std::vector<Message> random_messages(Random& r) {
  Stats stats;
  std::map<std::string, double> values;
  for (auto n = r.below(40); n > 0; --n) values[r.text(99)] = r.real(-9, 9);
  stats.values.assign(values.begin(), values.end());
  return {Hello{r.u32(), r.u32(), r.text(99)},
          random_welcome(r),
          random_submit(r),
          Accepted{r.id(), r.u64(), r.text(99), r.u32(), r.id()},
          random_chunk(r),
          random_done(r),
          random_failed(r),
          Cancel{r.id(), r.id(), r.u64()},
          Attach{r.id(), r.coin() ? r.id() : OwnerSecret{}, r.u32(), r.u32(), r.coin()},
          Ack{r.id(), r.id(), r.u32(), r.u32(), r.coin()},
          StatsRequest{},
          stats,
          HealthRequest{},
          Health{r.coin(), r.text(200)}};
}

bool same(const Chunk& a, const Chunk& b) {
  const auto logprobs_same = [](const auto& x, const auto& y) {
    return x.token == y.token && x.logprob == y.logprob;
  };
  if (a.part.logprobs.size() != b.part.logprobs.size()) return false;
  for (std::size_t i = 0; i < a.part.logprobs.size(); ++i)
    if (!std::equal(a.part.logprobs[i].begin(), a.part.logprobs[i].end(),
                    b.part.logprobs[i].begin(), b.part.logprobs[i].end(), logprobs_same))
      return false;
  return a.stream == b.stream && a.epoch == b.epoch && a.choice == b.choice &&
         a.part.first_index == b.part.first_index && a.part.tokens == b.part.tokens &&
         a.part.text == b.part.text && a.part.text_offset == b.part.text_offset &&
         a.part.chain == b.part.chain;
}
bool same(const Failed& a, const Failed& b) {
  return a.stream == b.stream && a.epoch == b.epoch && a.error.code == b.error.code &&
         a.error.message == b.error.message && a.error.retry_after_ms == b.error.retry_after_ms;
}
template <class T>
bool same(const T& a, const T& b) {
  return a == b;
}
bool same(const Message& a, const Message& b) {
  return a.index() == b.index() &&
         std::visit([&]<class T>(const T& x) { return same(x, std::get<T>(b)); }, a);
}

// One value of each kind that a key may hold, and of some that none may.
const std::map<std::string, std::string> sample_values = {{"nil", "\xc0"},
                                                          {"bool", "\xc3"},
                                                          {"int", "\x05"},
                                                          {"negative", "\xfb"},
                                                          {"real", "\xca\x3f\x01\x01\x01"},
                                                          {"text", "\xa1x"},
                                                          {"bin", "\xc4\x01x"},
                                                          {"array", "\x91\xc0"},
                                                          {"map", "\x81\xa1x\xc0"},
                                                          {"ext", "\xd4\x01x"}};

/// What a key holds, by its dotted name.
std::string kind_of(const std::string& key) {
  static const std::set<std::string> bins = {"stream", "owner", "chain"};
  static const std::set<std::string> bools = {"live", "terminal", "ignore_eos", "allow_inexact",
                                              "ready"};
  static const std::set<std::string> reals = {"sampling.temperature",
                                              "sampling.top_p",
                                              "sampling.min_p",
                                              "sampling.repetition_penalty",
                                              "sampling.presence_penalty",
                                              "sampling.frequency_penalty",
                                              "receipt.queue_ms",
                                              "receipt.prefill_ms",
                                              "receipt.decode_ms",
                                              "receipt.device_seconds",
                                              "receipt.price"};
  static const std::set<std::string> texts = {"type",
                                              "client",
                                              "server",
                                              "site",
                                              "publish",
                                              "model",
                                              "numerics",
                                              "code",
                                              "message",
                                              "why",
                                              "resume_numerics",
                                              "regex",
                                              "tenant",
                                              "receipt.model",
                                              "receipt.numerics",
                                              "receipt.backend",
                                              "receipt.site",
                                              "receipt.jurisdiction"};
  static const std::set<std::string> arrays = {
      "models",   "stops",  "jurisdictions", "resume_tokens",       "resume_text_bytes",   "tokens",
      "logprobs", "finish", "text_bytes",    "sampling.logit_bias", "sampling.stop_tokens"};
  static const std::set<std::string> maps = {"sampling", "receipt", "values"};
  if (bins.contains(key)) return "bin";
  if (bools.contains(key)) return "bool";
  if (reals.contains(key)) return "real";
  if (texts.contains(key) || key == "text") return "text";
  if (arrays.contains(key)) return "array";
  if (maps.contains(key)) return "map";
  if (key == "priority") return "signed";
  if (key == "prompt") return "prompt";
  return "int";
}

/// Whether a key of `kind` may hold `sample`; arrays and maps may not hold the samples' content.
bool may_hold(const std::string& kind, const std::string& sample) {
  if (sample == "nil") return true;  // as if absent; tested apart
  if (kind == "real") return sample == "int" || sample == "real" || sample == "negative";
  if (kind == "signed") return sample == "int" || sample == "negative";
  if (kind == "prompt") return sample == "text";
  if (kind == "bin" || kind == "array") return false;
  if (kind == "map") return sample == "map";
  return kind == sample;
}

/// `map` packed again with the value of `key` replaced by raw bytes, or left out when they are
/// empty.
std::string replaced(const msgpack::object& map, const std::string& path, const std::string& bytes,
                     const std::string& prefix = "") {
  msgpack::sbuffer body;
  msgpack::packer<msgpack::sbuffer> pack(body);
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < map.via.map.size; ++i) {
    const auto& [key, value] = map.via.map.ptr[i];
    const std::string name = prefix + key.as<std::string>();
    if (name == path && bytes.empty()) continue;
    ++count;
    pack.pack(key);
    if (name == path)
      body.write(bytes.data(), bytes.size());
    else if (value.type == msgpack::type::MAP && path.starts_with(name + "."))
      body.write(replaced(value, path, bytes, name + ".").data(),
                 replaced(value, path, bytes, name + ".").size());
    else
      pack.pack(value);
  }
  msgpack::sbuffer out;
  msgpack::packer<msgpack::sbuffer>(out).pack_map(count);
  return std::string(out.data(), out.size()) + std::string(body.data(), body.size());
}

std::vector<std::string> paths_of(const msgpack::object& map) {
  std::vector<std::string> paths;
  for (std::uint32_t i = 0; i < map.via.map.size; ++i) {
    const std::string key = map.via.map.ptr[i].key.as<std::string>();
    paths.push_back(key);
    const msgpack::object& value = map.via.map.ptr[i].val;
    if (value.type == msgpack::type::MAP && key != "values")
      for (const auto& inner : paths_of(value)) paths.push_back(key + "." + inner);
  }
  return paths;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(protocol)

BOOST_AUTO_TEST_CASE(random_messages_survive) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    Random random{std::mt19937_64(seed)};
    for (const Message& message : random_messages(random)) {
      const auto decoded = decode(encode(message), limits);
      BOOST_REQUIRE_MESSAGE(decoded, seed << ": " << decoded.error().message);
      BOOST_REQUIRE_MESSAGE(same(*decoded, message), seed << ", kind " << message.index());
    }
  }
}

BOOST_AUTO_TEST_CASE(golden_bytes_of_every_message) {
  for (const auto& [name, message] : golden_messages()) {
    const std::string golden = golden_bytes(name);
    BOOST_CHECK_MESSAGE(encode(message) == golden, name);
    const auto decoded = decode(golden, limits);
    BOOST_REQUIRE_MESSAGE(decoded, name << ": " << decoded.error().message);
    BOOST_CHECK_MESSAGE(same(*decoded, message), name);
  }
}

BOOST_AUTO_TEST_CASE(every_wrong_type_is_refused_by_name) {
  int refused = 0;
  for (const auto& [name, message] : golden_messages()) {
    const std::string golden = golden_bytes(name);
    const auto handle = msgpack::unpack(golden.data(), golden.size());
    for (const std::string& path : paths_of(handle.get())) {
      for (const auto& [sample, bytes] : sample_values) {
        if (may_hold(kind_of(path), sample)) continue;
        const Error error = refusal(replaced(handle.get(), path, bytes));
        BOOST_CHECK_MESSAGE(error.code == ErrorCode::bad_request,
                            name << " " << path << " as " << sample << ": " << error.message);
        BOOST_CHECK_MESSAGE(error.message.find(path) != std::string::npos,
                            name << " " << path << " as " << sample << ": " << error.message);
        ++refused;
      }
    }
  }
  BOOST_CHECK_GT(refused, 700);
}

BOOST_AUTO_TEST_CASE(required_keys_and_absent_ones) {
  const std::map<std::string, std::set<std::string>> required = {
      {"hello", {"type", "version_min", "version_max"}},
      {"welcome", {"type", "version", "publish"}},
      {"submit_text", {"type", "stream", "owner", "prompt"}},
      {"accepted", {"type", "stream", "chain"}},
      {"chunk", {"type", "stream", "index", "tokens", "chain"}},
      {"done", {"type", "stream", "finish", "tokens", "text_bytes"}},
      {"error", {"type", "code"}},
      {"cancel", {"type", "stream", "owner"}},
      {"attach", {"type", "stream", "index"}},
      {"ack", {"type", "stream", "index"}},
      {"stats", {"type", "values"}},
      {"health", {"type", "ready"}}};
  for (const auto& [name, keys] : required) {
    const std::string golden = golden_bytes(name);
    const auto handle = msgpack::unpack(golden.data(), golden.size());
    for (const std::string& path : paths_of(handle.get())) {
      for (const std::string& absent : {std::string(), std::string("\xc0")}) {
        const auto decoded = decode(replaced(handle.get(), path, absent), limits);
        if (!keys.contains(path)) {
          BOOST_CHECK_MESSAGE(decoded, name << " without " << path);
          continue;
        }
        BOOST_REQUIRE_MESSAGE(!decoded, name << " without " << path);
        BOOST_CHECK(decoded.error().code == ErrorCode::bad_request);
        BOOST_CHECK_MESSAGE(decoded.error().message.find(path + " is missing") != std::string::npos,
                            decoded.error().message);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(numbers_of_other_languages) {
  const std::string golden = golden_bytes("submit_full");
  const auto handle = msgpack::unpack(golden.data(), golden.size());
  const auto with = [&](const std::string& path, const std::string& bytes) {
    const auto decoded = decode(replaced(handle.get(), path, bytes), limits);
    BOOST_REQUIRE_MESSAGE(decoded, decoded.error().message);
    return std::get<Submit>(*decoded);
  };
  BOOST_CHECK_EQUAL(with("sampling.temperature", "\x01").sampling.temperature, 1.0F);
  // A double, the way most languages write it: 0.7 becomes the nearest float.
  BOOST_CHECK_EQUAL(
      with("sampling.temperature", "\xcb\x3f\xe6\x66\x66\x66\x66\x66\x66").sampling.temperature,
      0.7F);
  const Submit zero =
      with("sampling.temperature", std::string("\xcb\x80\x00\x00\x00\x00\x00\x00\x00", 9));
  BOOST_CHECK(!std::signbit(zero.sampling.temperature));
  // Widths other than the shortest are the same integer.
  BOOST_CHECK_EQUAL(with("max_tokens", std::string("\xcf\0\0\0\0\0\0\x01\x2c", 9)).max_tokens,
                    300U);
}

BOOST_AUTO_TEST_CASE(constraints_exclude_each_other) {
  Submit submit;
  submit.stream.fill(1);
  submit.owner.fill(2);
  submit.prompt = "x";
  submit.constraint = {engine::Constraint::Kind::regex, "a"};
  const std::string one = encode(submit);
  BOOST_REQUIRE(decode(one, limits));
  std::string both = one + "\xabjson_schema\xa2{}";
  ++both[0];
  const auto decoded = decode(both, limits);
  BOOST_REQUIRE(!decoded);
  BOOST_CHECK(decoded.error().code == ErrorCode::bad_request);
  BOOST_CHECK(decoded.error().message.find("json_schema") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(unknown_keys_are_ignored) {
  const std::string extra =
      "\x84\xa4type\xa6health\xa5ready\xc3\x07\x08\xa1x\x82\xa1y\x91\xc0\x01\xa1z";
  const auto decoded = decode(extra, limits);
  BOOST_REQUIRE_MESSAGE(decoded, decoded.error().message);
  BOOST_CHECK(std::get<Health>(*decoded).ready);
}

BOOST_AUTO_TEST_CASE(error_codes_of_a_later_version) {
  const auto decoded = decode(
      "\x82\xa4type\xa5"
      "error\xa4"
      "code\xa8whatever",
      limits);
  BOOST_REQUIRE_MESSAGE(decoded, decoded.error().message);
  BOOST_CHECK(std::get<Failed>(*decoded).error.code == ErrorCode::internal);
}

BOOST_AUTO_TEST_CASE(logit_bias_is_sorted) {
  Submit m = full_submit();
  m.sampling.logit_bias = {{9, 1.0F}, {4, 2.0F}, {70000, 3.0F}};
  const auto decoded = decode(encode(m), limits);
  BOOST_REQUIRE(decoded);
  const std::vector<std::pair<Token, float>> sorted = {{4, 2.0F}, {9, 1.0F}, {70000, 3.0F}};
  BOOST_CHECK(std::get<Submit>(*decoded).sampling.logit_bias == sorted);
}

// The example that docs/protocol.md works out is what this code says.
BOOST_AUTO_TEST_CASE(worked_example_of_the_documentation) {
  std::ifstream file(SLUICE_FIXTURES "/../../docs/protocol.md");
  BOOST_REQUIRE(file);
  std::vector<std::string> blocks;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line == "```") {
      inside = !inside;
      if (inside) blocks.emplace_back();
    } else if (inside) {
      for (std::size_t i = 0; i < line.size(); i += 2)
        blocks.back().push_back(static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16)));
    }
  }
  BOOST_REQUIRE_EQUAL(blocks.size(), 5U);
  Submit submit;
  submit.stream = *stream_from_hex("5f1c0a3e77b24d19a0c4e8d2916b3f07");
  submit.owner = *stream_from_hex("c2a91e5d0b7f4638915ea4d07c33f8b6");
  submit.prompt = "Hi";
  submit.sampling.temperature = 0;
  submit.sampling.seed = 7;
  submit.max_tokens = 2;
  BOOST_CHECK(encode(submit) == blocks[0]);
  auto sampling = submit.sampling;
  sampling.stop_tokens = {2};
  const Token prompt = 19556;
  const auto start = engine::chain_start("00", std::span(&prompt, 1), sampling);
  std::array<std::uint8_t, crypto_hash_sha256_BYTES> digest;
  crypto_hash_sha256(digest.data(), reinterpret_cast<const std::uint8_t*>(blocks[1].data()),
                     blocks[1].size());
  BOOST_CHECK(std::equal(start.begin(), start.end(), digest.begin()));
  BOOST_CHECK(encode(Accepted{submit.stream, 0, "00", 1, start}) == blocks[2]);
  engine::StreamLog log(start);
  const Token tokens[] = {28, 339};
  BOOST_CHECK(encode(Chunk{submit.stream, 0, 0, log.append(tokens, ", I", {})}) == blocks[3]);
  BOOST_CHECK(encode(Ack{submit.stream, submit.owner, 0, 2, true}) == blocks[4]);
}

BOOST_AUTO_TEST_SUITE_END()
