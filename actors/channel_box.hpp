#pragma once
// Channels over sessions, whatever carries these: which message goes to which actor, and who hears
// that a session or a channel is over.

#include <string>
#include <string_view>

#include "actors/channel_table.hpp"
#include "actors/channels.hpp"
#include "transport/link.hpp"

namespace sluice::actors {

class ChannelBox : public PeerBox {
 public:
  ChannelRef open(transport::LinkId link, transport::OpenChannel what, ChannelEnd end) override;
  void join(ChannelRef channel, ChannelEnd end) override;
  void send(ChannelRef channel, const transport::NodeMessage& message) override;
  void close(ChannelRef channel) override;
  void tell(transport::LinkId link, const transport::NodeMessage& message) override;

  // Of whoever carries sessions, one at a time.

  /// Who hears of sessions, and of what is outside of channels; set while there are none.
  void serve(HostActor host) { host_ = std::move(host); }
  const HostActor& host() const { return host_; }

  void up(const transport::LinkUp& up);
  void down(const transport::LinkDown& down);

  /// A message on a session. An error: it is none.
  Result<void> receive(transport::LinkId link, std::string_view frame);

 private:
  /// Any thread. Nothing happens when the session is over.
  virtual void post(transport::LinkId link, std::string frame) = 0;

  HostActor host_;
  ChannelTable channels_;
  transport::NodeLimits limits_;
};

}  // namespace sluice::actors
