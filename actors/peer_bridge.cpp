#include "actors/peer_bridge.hpp"

#include <utility>

namespace sluice::actors {
namespace {

/// Messages outside of channels travel as this one's.
constexpr std::uint32_t no_channel = 0;

void tell_lost(const ChannelEnd& end, ChannelRef channel, const Error& why) {
  if (end) caf::anon_send(end, lost_atom::value, channel, why);
}

}  // namespace

PeerBridge::PeerBridge(zmq::context_t& context, transport::PeerConfig config,
                       transport::NodeIdentity self, std::shared_ptr<RequestLog> log)
    : log_(std::move(log)),
      joined_(config.join),
      endpoint_(context, std::move(config), std::move(self),
                {.up =
                     [this](const transport::LinkUp& up) {
                       if (up.dial) logged_.erase(*up.dial);
                       channels_.up(up.link, up.dial.has_value());
                       caf::anon_send(host_, peer_atom::value, up);
                     },
                 .down =
                     [this](const transport::LinkDown& down) {
                       for (const auto& [channel, end] : channels_.down(down.link))
                         tell_lost(end, channel, down.why);
                       caf::anon_send(host_, lost_atom::value, down);
                     },
                 .failed = [this](const transport::LinkFailed& failure) { log_failure(failure); },
                 .message = [this](transport::LinkId link,
                                   std::string_view frame) { return receive(link, frame); }}) {}

Result<void> PeerBridge::start(HostActor host) {
  host_ = std::move(host);
  return endpoint_.start();
}

void PeerBridge::cut_removed() { endpoint_.cut_removed(); }

void PeerBridge::stop() {
  endpoint_.stop();
  host_ = nullptr;
}

/// Attempts follow each other for as long as it takes: each cause is said once, and a peer that
/// makes up new ones is not listened to for long.
void PeerBridge::log_failure(const transport::LinkFailed& failure) {
  constexpr std::size_t causes_max = 8;
  auto& causes = logged_[failure.dial];
  if (causes.size() < causes_max && causes.insert(failure.why.message).second)
    log_->node_warning(
        "peer_not_joined",
        fmt::format("{}: {}; it is tried again", joined_.at(failure.dial), failure.why.message));
}

Result<void> PeerBridge::receive(transport::LinkId link, std::string_view frame) {
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

ChannelRef PeerBridge::open(transport::LinkId link, transport::OpenChannel what, ChannelEnd end) {
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

void PeerBridge::join(ChannelRef channel, ChannelEnd end) {
  if (!channels_.join(channel, end))
    tell_lost(end, channel, {ErrorCode::unavailable, "the node is not connected any more", 0});
}

void PeerBridge::send(ChannelRef channel, const transport::NodeMessage& message) {
  endpoint_.send(channel.link, transport::encode(channel.number, message));
}

void PeerBridge::close(ChannelRef channel) {
  if (channels_.close(channel)) tell(channel.link, transport::CloseChannel{channel.number});
}

void PeerBridge::tell(transport::LinkId link, const transport::NodeMessage& message) {
  endpoint_.send(link, transport::encode(no_channel, message));
}

NamedValues PeerBridge::stats() const {
  const auto stats = endpoint_.stats();
  return {{"peers.messages_in", static_cast<double>(stats.messages_in)},
          {"peers.messages_out", static_cast<double>(stats.messages_out)},
          {"peers.malformed", static_cast<double>(stats.malformed)},
          {"peers.links_up", static_cast<double>(stats.links_up)},
          {"peers.links_lost", static_cast<double>(stats.links_lost)},
          {"peers.refused", static_cast<double>(stats.refused)},
          {"peers.connections_cut", static_cast<double>(stats.connections_cut)}};
}

const std::string& PeerBridge::address() const { return endpoint_.listen_address(); }

}  // namespace sluice::actors
