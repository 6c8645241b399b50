#pragma once
// Between the I/O thread and the actors: frames in become messages, frames out go to its queue.

#include <functional>
#include <memory>
#include <string>

#include "actors/actors.hpp"
#include "actors/outbox.hpp"
#include "transport/endpoint.hpp"

namespace sluice::actors {

/// The only includer of the endpoint among the actors.
class Bridge : public Outbox {
 public:
  /// `warn` is called on the I/O thread, with a line about clients that were let go.
  Bridge(zmq::context_t& context, transport::EndpointConfig config,
         std::function<void(const std::string&)> warn);

  /// Binds and starts; what clients send goes to `session` from now on.
  Result<void> start(SessionActor session);

  /// Sends what is queued and stops the I/O thread. Frames posted later are dropped.
  void stop();

  void send(const transport::Peer& peer, std::shared_ptr<const std::string> frame) override;
  void publish(const transport::StreamId& stream,
               std::shared_ptr<const std::string> frame) override;
  void post(std::vector<transport::Outgoing>&& frames) override;
  NamedValues stats() const override;

  /// Closes the connections of clients whose key the guard no longer allows.
  void cut_removed();

  const std::string& address() const;
  const std::string& publish_address() const;

 private:
  SessionActor session_;
  bool secured_;
  transport::Endpoint endpoint_;
};

}  // namespace sluice::actors
