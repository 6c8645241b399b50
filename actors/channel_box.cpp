#include "actors/channel_box.hpp"

#include <utility>

namespace sluice::actors {
namespace {

/// Messages outside of channels travel as this one's.
constexpr std::uint32_t no_channel = 0;

void tell_lost(const ChannelEnd& end, ChannelRef channel, const Error& why) {
  if (end) caf::anon_send(end, lost_atom::value, channel, why);
}

}  // namespace

void ChannelBox::up(const transport::LinkUp& up) {
  channels_.up(up.link, up.dial.has_value());
  caf::anon_send(host_, peer_atom::value, up);
}

void ChannelBox::down(const transport::LinkDown& down) {
  for (const auto& [channel, end] : channels_.down(down.link)) tell_lost(end, channel, down.why);
  caf::anon_send(host_, lost_atom::value, down);
}

Result<void> ChannelBox::receive(transport::LinkId link, std::string_view frame) {
  auto routed = transport::decode(frame, limits_);
  if (!routed) return tl::unexpected(routed.error());
  if (routed->channel != no_channel) {
    // One that this side closed a moment ago may still be sent to: nobody misses it.
    if (const auto end = channels_.find({link, routed->channel}))
      caf::anon_send(end, channel_atom::value, ChannelRef{link, routed->channel},
                     std::move(routed->message));
  } else if (const auto* closed = std::get_if<transport::CloseChannel>(&routed->message)) {
    tell_lost(channels_.close({link, closed->number}), {link, closed->number},
              {ErrorCode::unavailable, "the other node closed the channel", 0});
  } else {
    if (const auto* what = std::get_if<transport::OpenChannel>(&routed->message))
      channels_.opened({link, what->number});
    caf::anon_send(host_, peer_atom::value, link, std::move(routed->message));
  }
  return {};
}

ChannelRef ChannelBox::open(transport::LinkId link, transport::OpenChannel what, ChannelEnd end) {
  const auto channel = channels_.open(link, end);
  if (!channel) {
    const ChannelRef none{link, 0};
    tell_lost(end, none, {ErrorCode::unavailable, "the node is not connected", 0});
    return none;
  }
  what.number = channel->number;
  tell(link, what);
  return *channel;
}

void ChannelBox::join(ChannelRef channel, ChannelEnd end) {
  if (!channels_.join(channel, end))
    tell_lost(end, channel, {ErrorCode::unavailable, "the node is not connected any more", 0});
}

void ChannelBox::send(ChannelRef channel, const transport::NodeMessage& message) {
  post(channel.link, transport::encode(channel.number, message));
}

void ChannelBox::close(ChannelRef channel) {
  if (channels_.close(channel)) tell(channel.link, transport::CloseChannel{channel.number});
}

void ChannelBox::tell(transport::LinkId link, const transport::NodeMessage& message) {
  post(link, transport::encode(no_channel, message));
}

}  // namespace sluice::actors
