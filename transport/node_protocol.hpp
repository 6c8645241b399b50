#pragma once
// What nodes say to each other: messages of channels, each of which joins an actor's proxy on one
// node with the actor on another. Plain structs and their bytes, msgpack arrays throughout. No
// sockets. Times of one host mean nothing to another: ages and remaining times travel instead.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "engine/scheduler_config.hpp"
#include "engine/step.hpp"
#include "transport/protocol.hpp"
#include "transport/session.hpp"

namespace sluice::transport {

// Towards an executor and back.

using RunPlan = engine::StepPlan;
using SampleMasks = engine::StepMasks;

/// A rank's answer to a plan.
struct StepDone {
  engine::StepResult result;
  std::uint64_t checksum = 0;  ///< `tokens_checksum` of what this rank computed
};

/// Of ticket, slots, tokens, and who failed: equal on all ranks of a group that computed the same.
/// Logprobs do not count.
std::uint64_t tokens_checksum(const engine::StepResult& result);

// Towards a batcher and back.

/// What the owner holds of a choice; nothing, unless it resumes.
struct ResumedChoice {
  std::vector<Token> tokens;
  std::uint64_t text_bytes = 0;

  bool operator==(const ResumedChoice&) const = default;
};

/// A tokenized, checked request of the channel's engine.
struct Admit {
  Peer owner;
  StreamId stream{};
  engine::Request request;  ///< its own `deadline` does not travel: `remaining` does
  std::vector<ResumedChoice> choices;
  Accepted accepted;
  engine::Nanoseconds age = 0;                   ///< since the request was taken up
  std::optional<engine::Nanoseconds> remaining;  ///< until its deadline; 0: it has passed
};

struct CancelStream {
  StreamId stream{};
  std::uint64_t epoch = 0;

  bool operator==(const CancelStream&) const = default;
};

struct StatsAsk {
  std::uint64_t number = 0;  ///< chosen by who asks; the answer repeats it

  bool operator==(const StatsAsk&) const = default;
};

/// A refusal on its way from tokenizer or batcher to the client.
struct Refusal {
  StreamId stream{};
  std::uint64_t epoch = 0;
  Error error;
};
using RefusedNews = Refusal;

/// The batcher took a stream. Whoever admitted it knows the rest.
struct OpenStream {
  StreamId stream{};
  std::uint64_t epoch = 0;

  bool operator==(const OpenStream&) const = default;
};

/// What one step brought one choice of a stream.
struct StreamEvent {
  StreamId stream{};
  std::uint32_t choice = 0;
  std::uint64_t epoch = 0;  ///< of a lower one than the stream's, it is dropped
  engine::SequenceEvent event;
  Receipt receipt;  ///< meaningful with a finish, and sent only then
};

/// One message a step and streamer, however many tokens.
struct StepEvents {
  std::vector<StreamEvent> events;
};
using Events = StepEvents;

struct StatsAnswer {
  std::uint64_t number = 0;
  std::vector<std::pair<std::string, double>> values;

  bool operator==(const StatsAnswer&) const = default;
};

// Towards a tokenizer; answered with `Admit` or `RefusedNews`.

struct Tokenize {
  Peer owner;
  Submit submit;

  bool operator==(const Tokenize&) const = default;
};

// Channels.

/// Asks the other node to join what it serves to this channel.
struct OpenChannel {
  std::uint32_t number = 0;  ///< the channel's, from now on
  std::string service;       ///< "executor", "batcher", "tokenizer"
  std::string engine;        ///< the engine's name
  std::uint32_t rank = 0;    ///< of an executor, in its group
  std::uint32_t world = 1;
  std::uint64_t epoch = 0;  ///< of the group; a lower one than was seen is refused

  bool operator==(const OpenChannel&) const = default;
};

/// Where a node runs, as receipts and routers see it.
struct SiteConfig {
  std::string name = "local";
  std::string cloud;
  std::string region;
  std::string jurisdiction;
  double price_per_million_tokens = 0;  ///< of completion tokens, in the site's currency

  bool operator==(const SiteConfig&) const = default;
};

/// The channel is open; what is to be known of the engine behind it. Its tokenizer and chat format
/// are read from files by whoever needs them.
struct ChannelOpened {
  std::string engine;
  std::string numerics;  ///< numerics id, hex (design section 6.10)
  std::string backend;
  SiteConfig site;
  std::string tokenizer;  ///< fingerprint: the reader's own must be the same
  engine::SchedulerConfig scheduler;
};

struct ChannelFailed {
  Error error;
};

/// The channel is open; the engine behind it is the opener's to say.
struct ChannelJoined {
  bool operator==(const ChannelJoined&) const = default;
};

/// Either side is done with the channel.
struct CloseChannel {
  std::uint32_t number = 0;

  bool operator==(const CloseChannel&) const = default;
};

// The rendezvous of a tensor-parallel group.

/// What the channel's rank wants all others to know before they connect.
struct RankBlob {
  std::string bytes;  ///< at most `NodeLimits::blob_bytes_max`

  bool operator==(const RankBlob&) const = default;
};

/// The leader's answer to every rank once it has all.
struct RankBlobs {
  std::vector<std::string> blobs;  ///< by rank

  bool operator==(const RankBlobs&) const = default;
};

// What nodes offer each other.

/// One role of one engine that runs here.
struct Offer {
  std::string service;  ///< as in `OpenChannel`
  std::string engine;

  bool operator==(const Offer&) const = default;
};

/// All that the node offers now, in place of what it offered before.
struct Offers {
  std::vector<Offer> offers;

  bool operator==(const Offers&) const = default;
};

/// The place in this list is a message's kind on the wire: new ones go to the end.
using NodeMessage =
    std::variant<RunPlan, SampleMasks, StepDone, Admit, CancelStream, StatsAsk, ChannelJoined,
                 RefusedNews, OpenStream, Events, StatsAnswer, Tokenize, OpenChannel, ChannelOpened,
                 ChannelFailed, CloseChannel, RankBlob, RankBlobs, Offers>;

/// The message's name in errors and logs, e.g. "run_plan".
std::string_view name_of(const NodeMessage& message);

/// What a decoder accepts, checked before anything is allocated for it.
struct NodeLimits {
  std::size_t frame_bytes_max = std::size_t{256} << 20;
  std::uint32_t slots_max = 65536;      ///< of a plan, its masks or its result
  std::uint32_t blocks_max = 1U << 20;  ///< of a grant
  std::uint32_t tokens_max = 1U << 20;  ///< of a list
  std::uint32_t mask_words_max = 1U << 14;
  std::uint32_t stop_tokens_max = 2048;  ///< a client's and the model's own
  std::uint32_t logit_bias_max = 1024;
  std::uint32_t logprobs_max = 21;  ///< of a token: its own and the best
  std::uint32_t stops_max = 16;
  std::uint32_t stop_bytes_max = 256;
  std::uint32_t constraint_bytes_max = 64U << 10;
  std::uint32_t choices_max = 16;
  std::uint32_t events_max = 1U << 20;
  std::uint32_t values_max = 65536;  ///< of a stats answer
  std::uint32_t peer_bytes_max = 256;
  std::uint32_t name_bytes_max = 256;
  std::uint32_t explanation_bytes_max = 4096;  ///< an error's message
  std::uint32_t world_max = 1024;              ///< ranks of a group
  std::uint32_t offers_max = 4096;
  std::uint32_t blob_bytes_max = 64U << 10;
  Limits client;  ///< of the submit in a `Tokenize`
};

/// One msgpack frame.
std::string encode(std::uint32_t channel, const NodeMessage& message);

struct Routed {
  std::uint32_t channel = 0;
  NodeMessage message;
};

/// `bad_request` (malformed, mistyped, an array too short or long, bytes left over), `too_large` (a
/// limit, by name) or `unsupported` (unknown kind). What is decoded is well formed; whether it fits
/// the engine is for the receiver to judge.
Result<Routed> decode(std::string_view frame, const NodeLimits& limits);

}  // namespace sluice::transport
