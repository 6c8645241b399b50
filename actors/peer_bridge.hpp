#pragma once
// Between the actors and the I/O thread for peers: the only place where the two meet.

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actors/channel_table.hpp"
#include "actors/channels.hpp"
#include "actors/log.hpp"
#include "transport/peer_config.hpp"
#include "transport/peer_endpoint.hpp"

namespace sluice::actors {

class PeerBridge : public PeerBox {
 public:
  PeerBridge(zmq::context_t& context, transport::PeerConfig config, transport::NodeIdentity self,
             std::shared_ptr<RequestLog> log);

  /// Binds, dials, starts; sessions and what peers open go to `host` from now on.
  Result<void> start(HostActor host);

  /// After the allow list of nodes changed. Any thread.
  void cut_removed();

  /// Says goodbye and stops the I/O thread.
  void stop();

  ChannelRef open(transport::LinkId link, transport::OpenChannel what, ChannelEnd end) override;
  void join(ChannelRef channel, ChannelEnd end) override;
  void send(ChannelRef channel, const transport::NodeMessage& message) override;
  void close(ChannelRef channel) override;
  void tell(transport::LinkId link, const transport::NodeMessage& message) override;
  NamedValues stats() const;

  const std::string& address() const;

 private:
  Result<void> receive(transport::LinkId link, std::string_view frame);
  void log_failure(const transport::LinkFailed& failure);

  std::shared_ptr<RequestLog> log_;
  std::vector<std::string> joined_;  ///< as configured, by dial
  /// By dial: why no session came about, as logged since the last one. The I/O thread's.
  std::map<std::uint32_t, std::set<std::string>> logged_;
  HostActor host_;
  ChannelTable channels_;
  transport::NodeLimits limits_;
  transport::PeerEndpoint endpoint_;
};

}  // namespace sluice::actors
