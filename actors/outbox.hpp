#pragma once
// What actors know of the way out: frames to a client, frames to a stream's subscribers.

#include <memory>
#include <string>
#include <utility>
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
  virtual NamedValues stats() const = 0;
};

using OutboxPtr = std::shared_ptr<Outbox>;

}  // namespace sluice::actors
