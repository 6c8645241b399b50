#pragma once
// Between the actors and the I/O thread for peers: the only place where the two meet.

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actors/channel_box.hpp"
#include "actors/log.hpp"
#include "transport/peer_config.hpp"
#include "transport/peer_endpoint.hpp"

namespace sluice::actors {

class PeerBridge : public ChannelBox {
 public:
  PeerBridge(zmq::context_t& context, transport::PeerConfig config, transport::NodeIdentity self,
             std::shared_ptr<RequestLog> log);

  /// Binds, dials, starts; sessions and what peers open go to `host` from now on.
  Result<void> start(HostActor host);

  /// After the allow list of nodes changed. Any thread.
  void cut_removed();

  /// Says goodbye and stops the I/O thread.
  void stop();

  NamedValues stats() const;

  const std::string& address() const;

 private:
  void post(transport::LinkId link, std::string frame) override;
  void log_failure(const transport::LinkFailed& failure);

  std::shared_ptr<RequestLog> log_;
  std::vector<std::string> joined_;  ///< as configured, by dial
  /// By dial: why no session came about, as logged since the last one. Of the handlers, which are
  /// called one at a time.
  std::map<std::uint32_t, std::set<std::string>> logged_;
  transport::PeerEndpoint endpoint_;
};

}  // namespace sluice::actors
