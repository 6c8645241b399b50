#pragma once
// A client's view of one stream: what it holds, what is missing, what to say next. Pure.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transport/protocol.hpp"

namespace sluice::transport {

/// What reached the caller: gapless, in order, each token once.
struct ClientEvent {
  std::uint32_t choice = 0;
  std::vector<Token> tokens;
  std::string text;
  std::vector<std::vector<engine::TokenLogprob>> logprobs;
  engine::ChainHash chain{};  ///< with tokens: the link after the last of them, verified
  std::optional<Accepted> accepted;
  std::optional<Done> done;
  std::optional<Failed> failed;
};

/// When the node connected to lost the stream (it was started anew, say, or it lost its engine) or
/// has only an earlier run of it, the owner's stream is submitted again under the next epoch, to go
/// on after the tokens held: the caller sees nothing of it. `not_exact` where that node's numerics
/// are others.
class ClientStream {
 public:
  /// Silence, however often asked into, after which a stream ends with `unavailable`.
  static constexpr std::uint64_t default_patience_ns = 60'000'000'000;

  /// For the stream's owner: follows what it submitted. `window_tokens` is the welcome's: acks go
  /// out well before the sender would pause.
  explicit ClientStream(const Submit& submit, std::uint32_t window_tokens = 1024,
                        std::uint64_t patience_ns = default_patience_ns);
  /// For a reader: follows from token `from` on, without the right to acknowledge. `subscribed`:
  /// live chunks come from the publisher, so that only what is missing is asked for.
  ClientStream(StreamId stream, std::uint32_t from, bool subscribed = false,
               std::uint32_t window_tokens = 1024,
               std::uint64_t patience_ns = default_patience_ns);
  ~ClientStream();

  /// Takes a message about this stream; appends what to send (acks, attaches) and what to hand on.
  /// A chain that does not fit is a `Failed` event with `internal`, and the end.
  void on_message(const Message& message, std::uint64_t now_ns, std::vector<Message>& send,
                  std::vector<ClientEvent>& events);

  /// The connection is there, for the first time or again: submits, or asks for what is missing.
  void on_connected(std::uint64_t now_ns, std::vector<Message>& send);

  /// To be called every second or so. When nothing came for a while, asks again; when nothing came
  /// for all its patience, gives the node up.
  void tick(std::uint64_t now_ns, std::vector<Message>& send, std::vector<ClientEvent>& events);

  /// Its owner wants no more of it. Said again with each question until the node has ended it; a
  /// node that knows nothing of it ends it too, with `cancelled`. For readers nothing happens.
  void cancel(std::vector<Message>& send);

  /// The node is there and cannot serve yet: asks again after `retry_ns`.
  void on_unavailable(std::uint64_t now_ns, std::uint64_t retry_ns);

  bool ended() const;

  /// Of the owner's last submission, or the highest that a reader saw.
  std::uint64_t epoch() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
