#pragma once
// The C++ client: one connection to a node, any number of streams on it. One thread at a time.

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "transport/client_state.hpp"
#include "transport/curve_keys.hpp"
#include "transport/protocol.hpp"

namespace zmq {
class context_t;
}

namespace sluice::transport {

struct ClientConfig {
  /// tcp, ipc or inproc; several with commas between. When the front at hand is lost, streams go on
  /// at the next: no token is lost or comes twice.
  std::string connect;
  std::string name = "sluice-client";
  std::chrono::milliseconds connect_timeout{5000};
  /// A stream whose node was silent for so long, though asked, ends with `unavailable`.
  std::chrono::milliseconds lost_timeout{60'000};
  /// Empty: plain. Else the node must hold `server_key`, and allow the client's own key.
  CurveClient curve{};
};

class Client {
 public:
  /// Connects and exchanges hello and welcome. `unavailable` when nobody answers in time,
  /// `unauthorized` when the node refuses the key, or one of the two speaks CURVE and the other
  /// does not; names the endpoint and the remedy. With `context`, inproc endpoints of that context
  /// can be reached.
  static Result<std::unique_ptr<Client>> connect(ClientConfig config,
                                                 zmq::context_t* context = nullptr);
  ~Client();

  const Welcome& welcome() const;

  /// A request with stream id, owner secret and seed drawn at random.
  static Submit new_submit();

  /// Sends a request. Fills in stream id and owner secret where they are zero; returns the stream
  /// id. The seed is sent as it is.
  Result<StreamId> submit(Submit submit);

  /// Follows a stream from token `from` on, through the subscriber socket and `attach`.
  Result<void> subscribe(const StreamId& stream, std::uint32_t from);

  void cancel(const StreamId& stream);

  /// The next event of any stream, or none when `timeout` passed. Acks and repairs by itself.
  struct Event {
    StreamId stream{};
    ClientEvent event;
  };
  std::optional<Event> next(std::chrono::milliseconds timeout);

  Result<Stats> stats(std::chrono::milliseconds timeout);
  Result<Health> health(std::chrono::milliseconds timeout);

  /// Random bits from the system, for ids and seeds.
  static StreamId random_stream_id();
  static std::uint64_t random_seed();

 private:
  struct State;
  explicit Client(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice::transport
