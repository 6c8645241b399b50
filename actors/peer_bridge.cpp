#include "actors/peer_bridge.hpp"

#include <utility>

namespace sluice::actors {

PeerBridge::PeerBridge(zmq::context_t& context, transport::PeerConfig config,
                       transport::NodeIdentity self, std::shared_ptr<RequestLog> log)
    : log_(std::move(log)),
      joined_(config.join),
      endpoint_(context, std::move(config), std::move(self),
                {.up =
                     [this](const transport::LinkUp& made) {
                       if (made.dial) logged_.erase(*made.dial);
                       up(made);
                     },
                 .down = [this](const transport::LinkDown& over) { down(over); },
                 .failed = [this](const transport::LinkFailed& failure) { log_failure(failure); },
                 .message = [this](transport::LinkId link,
                                   std::string_view frame) { return receive(link, frame); }}) {}

Result<void> PeerBridge::start(HostActor host) {
  serve(std::move(host));
  return endpoint_.start();
}

void PeerBridge::cut_removed() { endpoint_.cut_removed(); }

void PeerBridge::stop() {
  endpoint_.stop();
  serve({});
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

void PeerBridge::post(transport::LinkId link, std::string frame) {
  endpoint_.send(link, std::move(frame));
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
