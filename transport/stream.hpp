#pragma once
// One stream as its keeper sees it: the log, who follows it, what each was sent and has. Pure.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/stream_log.hpp"
#include "transport/protocol.hpp"
#include "transport/session.hpp"

namespace sluice::transport {

struct StreamConfig {
  std::uint32_t window_tokens = 1024;          ///< unacknowledged tokens at which live chunks pause
  std::uint32_t chunk_tokens_max = 512;        ///< of a replayed chunk
  std::uint64_t resend_ns = 500'000'000;       ///< a terminal is repeated until acknowledged
  std::uint64_t retention_ns = 60'000'000'000; ///< log and terminal are kept so long after the end
  std::uint64_t retention_bytes = 64'000'000;  ///< of all ended logs of a keeper; the oldest go
  std::uint64_t grace_ns = 10'000'000'000;     ///< an unfinished stream outlives its last follower
  std::uint64_t probe_ns = 2'000'000'000;      ///< a follower not sent to for so long is probed
  std::uint32_t followers_max = 1024;          ///< beyond: `overloaded`
};

/// One frame to send: to a peer, or, without one, to the stream's subscribers.
struct Delivery {
  std::optional<Peer> peer;
  std::shared_ptr<const std::string> frame;  ///< encoded once, shared by all receivers
};

class StreamState {
 public:
  /// `owner` follows from the start. `choices` logs, each with its first link.
  StreamState(StreamId id, std::uint64_t epoch, Peer owner,
              std::vector<engine::ChainHash> starts, StreamConfig config, std::uint64_t now_ns);
  ~StreamState();
  StreamState(StreamState&&) noexcept;
  StreamState& operator=(StreamState&&) noexcept;

  /// Before all else, for a stream that another keeper had: the next of its tokens and the text
  /// that it released. Nobody is told.
  void restore(std::uint32_t choice, Token token, std::string text);

  /// After the last `restore`: the owner holds these tokens and so many bytes of their text. It
  /// goes on from the token whose text it lacks.
  void owner_holds(std::uint32_t choice, std::uint64_t text_bytes);

  /// New tokens of a choice and the text they released: to subscribers at once, to peers as their
  /// windows allow. Text without tokens is a tail.
  void append(std::uint32_t choice, std::span<const Token> tokens, std::string text,
              std::vector<std::vector<engine::TokenLogprob>> logprobs, std::uint64_t now_ns,
              std::vector<Delivery>& out);

  /// The one terminal: Done or Failed. Follows the last chunk. Fills in a Done's counts of tokens
  /// and text bytes from the log.
  void finish(Message terminal, std::uint64_t now_ns, std::vector<Delivery>& out);

  /// Replays from the index asked for, as far as the window allows; with `live`, the peer follows
  /// from then on. When there is nothing to replay the answer is an empty chunk. An index not
  /// reached yet waits if live (the empty chunk tells the end), else it is a `bad_request`.
  void on_attach(const Peer& peer, const Attach& attach, bool owner, std::uint64_t now_ns,
                 std::vector<Delivery>& out);
  /// Opens the window of the peer that sent it; after the owner's `terminal` the stream's own is
  /// not repeated any more.
  void on_ack(const Peer& peer, const Ack& ack, bool owner, std::uint64_t now_ns,
              std::vector<Delivery>& out);
  void on_lost(const Peer& peer, std::uint64_t now_ns);

  struct Verdict {
    /// Nobody followed for the grace time, while this process ran: cancel the sequence.
    bool abandoned = false;
    bool expired = false;    ///< finished, and retention is over
    std::optional<std::uint64_t> next_tick_ns;  ///< when `tick` has something to do
  };
  /// Repeats an unacknowledged terminal, probes who heard nothing (so that a peer that is gone is
  /// found out, and an ack that was lost is given again), judges grace and retention.
  Verdict tick(std::uint64_t now_ns, std::vector<Delivery>& out);

  /// Finished, the owner has everything, and every follower was sent it: nobody waits for more.
  bool settled() const;

  /// Its owner follows and has not said that it has everything, or there is no terminal yet.
  bool owed() const;

  std::size_t memory_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
