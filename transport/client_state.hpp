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

class ClientStream {
 public:
  /// For the stream's owner: follows what it submitted.
  explicit ClientStream(const Submit& submit);
  /// For a reader: follows from token `from` on, without the right to acknowledge.
  ClientStream(StreamId stream, std::uint32_t from);
  ~ClientStream();

  /// Takes a message about this stream; appends what to send (acks, attaches) and what to hand on.
  /// A chain that does not fit is a `Failed` event with `internal`, and the end.
  void on_message(const Message& message, std::uint64_t now_ns, std::vector<Message>& send,
                  std::vector<ClientEvent>& events);

  /// The connection came back: asks for what is missing.
  void on_connected(std::uint64_t now_ns, std::vector<Message>& send);

  /// Nothing came for a while: asks again.
  void tick(std::uint64_t now_ns, std::vector<Message>& send);

  bool ended() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
