#pragma once
// What actors know of the way out: frames to a client, frames to a stream's subscribers.

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "transport/session.hpp"

namespace sluice::actors {

/// Counters and gauges by dotted name.
using NamedValues = std::vector<std::pair<std::string, double>>;

/// Implemented by the bridge over the I/O thread, and by tests. Every method from any thread.
class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void send(const transport::Peer& peer, std::shared_ptr<const std::string> frame) = 0;
  virtual void publish(const transport::StreamId& stream,
                       std::shared_ptr<const std::string> frame) = 0;
  /// Each as the two above, in their order; what costs as much for all as for one is done once.
  virtual void post(std::vector<transport::Outgoing>&& frames) {
    for (auto& [to, frame] : frames) {
      if (const auto* peer = std::get_if<transport::Peer>(&to))
        send(*peer, std::move(frame));
      else
        publish(std::get<transport::StreamId>(to), std::move(frame));
    }
  }
  virtual NamedValues stats() const = 0;
};

using OutboxPtr = std::shared_ptr<Outbox>;

}  // namespace sluice::actors
