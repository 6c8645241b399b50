#pragma once
// The messages of docs/protocol.md as plain structs, and their bytes. No sockets.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/step.hpp"
#include "engine/stream_log.hpp"

namespace sluice::transport {

inline constexpr std::uint32_t protocol_version = 1;

/// 128-bit random name of a stream, chosen by the client; knowing it allows reading.
using StreamId = std::array<std::uint8_t, 16>;

/// 128-bit secret that proves ownership where CURVE does not.
using OwnerSecret = std::array<std::uint8_t, 16>;

struct ChatMessage {
  std::string role;
  std::string content;

  bool operator==(const ChatMessage&) const = default;
};

using Prompt = std::variant<std::string, std::vector<Token>, std::vector<ChatMessage>>;

struct Hello {
  std::uint32_t version_min = protocol_version;
  std::uint32_t version_max = protocol_version;
  std::string client;  ///< name and version, for logs

  bool operator==(const Hello&) const = default;
};

struct ModelInfo {
  std::string name;
  std::string numerics;     ///< numerics id, hex
  std::string backend;
  std::string chat_format;  ///< empty: the model takes no chat messages
  std::uint32_t context_tokens = 0;
  std::uint32_t vocabulary = 0;

  bool operator==(const ModelInfo&) const = default;
};

struct Welcome {
  std::uint32_t version = protocol_version;
  std::string server;
  std::string site;
  std::string publish;  ///< where the XPUB socket listens
  std::vector<ModelInfo> models;
  std::uint32_t frame_bytes_max = 0;
  std::uint32_t window_tokens = 0;

  bool operator==(const Welcome&) const = default;
};

struct Submit {
  StreamId stream{};
  OwnerSecret owner{};
  std::uint64_t epoch = 0;
  std::string model;  ///< empty: the node's only model
  Prompt prompt;
  engine::SamplingParams sampling;  ///< `stop_tokens`: further ids that end the sequence
  std::uint32_t n = 1;
  std::uint32_t max_tokens = 0;     ///< 0: to the context's end
  std::vector<std::string> stops;
  engine::Constraint constraint;    ///< what the text must be
  bool ignore_eos = false;
  std::int32_t priority = 0;
  std::string tenant;               ///< whose share it takes; empty: the connection's own
  std::uint32_t deadline_ms = 0;    ///< from arrival; 0: none
  std::vector<std::string> jurisdictions;  ///< empty: any
  std::vector<std::vector<Token>> resume_tokens;  ///< per choice; empty: from the start
  std::vector<std::uint64_t> resume_text_bytes;   ///< per choice: text already held
  std::string resume_numerics;      ///< numerics id that made them
  bool allow_inexact = false;

  bool operator==(const Submit&) const = default;
};

struct Accepted {
  StreamId stream{};
  std::uint64_t epoch = 0;
  std::string numerics;
  std::uint32_t prompt_tokens = 0;
  engine::ChainHash chain{};  ///< the link before token 0

  bool operator==(const Accepted&) const = default;
};

struct Chunk {
  StreamId stream{};
  std::uint64_t epoch = 0;
  std::uint32_t choice = 0;
  engine::StreamPart part;
};

/// What a stream cost: the terminal message is the receipt (design section 1.5).
struct Receipt {
  std::string model;
  std::string numerics;
  std::string backend;
  std::string site;
  std::string jurisdiction;
  double queue_ms = 0;
  double prefill_ms = 0;
  double decode_ms = 0;
  double device_seconds = 0;
  double price = 0;  ///< in the site's currency unit; 0: no price configured
  std::uint32_t prompt_tokens = 0;
  std::uint32_t cached_tokens = 0;
  std::uint32_t completion_tokens = 0;

  bool operator==(const Receipt&) const = default;
};

struct Done {
  StreamId stream{};
  std::uint64_t epoch = 0;
  std::vector<engine::FinishReason> finish;  ///< per choice: stop, length or cancelled
  std::vector<std::uint32_t> tokens;         ///< per choice, so that a gap at the end shows
  Receipt receipt;
  std::vector<std::uint64_t> text_bytes{};  ///< per choice: length of the whole text, likewise

  bool operator==(const Done&) const = default;
};

/// A typed refusal or failure. Without a stream it answers a message that named none.
struct Failed {
  std::optional<StreamId> stream;
  std::uint64_t epoch = 0;
  Error error;
};

struct Cancel {
  StreamId stream{};
  OwnerSecret owner{};
  std::uint64_t epoch = 0;

  bool operator==(const Cancel&) const = default;
};

struct Attach {
  StreamId stream{};
  OwnerSecret owner{};      ///< all zero: a reader
  std::uint32_t choice = 0;
  std::uint32_t index = 0;  ///< next token wanted
  bool live = true;         ///< go on with what comes; else only what the log holds

  bool operator==(const Attach&) const = default;
};

/// Opens the flow window of the connection that sends it; the owner's ends the retention too.
struct Ack {
  StreamId stream{};
  OwnerSecret owner{};      ///< all zero: a reader
  std::uint32_t choice = 0;
  std::uint32_t index = 0;  ///< tokens held: everything below
  bool terminal = false;    ///< the terminal is held too; only the owner's counts

  bool operator==(const Ack&) const = default;
};

struct StatsRequest {
  bool operator==(const StatsRequest&) const = default;
};
/// Counters and gauges by dotted name, e.g. "engine.tokens".
struct Stats {
  std::vector<std::pair<std::string, double>> values;  ///< sorted by name

  bool operator==(const Stats&) const = default;
};

struct HealthRequest {
  bool operator==(const HealthRequest&) const = default;
};
struct Health {
  bool ready = false;
  std::string why;  ///< empty when ready

  bool operator==(const Health&) const = default;
};

using Message = std::variant<Hello, Welcome, Submit, Accepted, Chunk, Done, Failed, Cancel, Attach,
                             Ack, StatsRequest, Stats, HealthRequest, Health>;

/// What a decoder accepts, checked before anything is allocated for it.
struct Limits {
  std::size_t frame_bytes_max = std::size_t{8} << 20;
  std::uint32_t depth_max = 8;
  std::uint32_t map_keys_max = 64;         ///< of a message and of the maps in it
  std::uint32_t tokens_max = 1U << 20;
  std::uint32_t text_bytes_max = 4U << 20;
  std::uint32_t chat_messages_max = 4096;
  std::uint32_t stops_max = 16;
  std::uint32_t stop_bytes_max = 256;
  std::uint32_t stop_tokens_max = 1024;
  std::uint32_t constraint_bytes_max = 64U << 10;
  std::uint32_t logit_bias_max = 1024;
  std::uint32_t choices_max = 16;
  std::uint32_t logprobs_max = 20;
  std::uint32_t jurisdictions_max = 64;
  std::uint32_t models_max = 1024;         ///< of a welcome
  std::uint32_t values_max = 65536;        ///< of a stats answer
  std::uint32_t name_bytes_max = 256;
  std::uint32_t explanation_bytes_max = 4096;  ///< an error's message, a health's why
};

/// One msgpack frame.
std::string encode(const Message& message);

/// `bad_request` (malformed, missing or mistyped key), `too_large` (a limit, by name) or
/// `unsupported` (unknown type). Unknown keys are ignored; trailing bytes are not.
Result<Message> decode(std::string_view frame, const Limits& limits);

/// What a frame seems to be about, as far as it can be told from one that did not decode.
struct Subject {
  std::optional<StreamId> stream;
  std::uint64_t epoch = 0;
};
Subject subject_of(std::string_view frame, const Limits& limits);

/// The reason's name on the wire, e.g. "stop".
std::string_view to_string(engine::FinishReason reason);

std::string to_hex(std::span<const std::uint8_t> bytes);
std::optional<StreamId> stream_from_hex(std::string_view hex);

}  // namespace sluice::transport
