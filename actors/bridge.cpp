#include "actors/bridge.hpp"

#include <utility>

namespace sluice::actors {

Bridge::Bridge(zmq::context_t& context, transport::EndpointConfig config,
               std::function<void(const std::string&)> warn)
    : secured_(config.curve.has_value()),
      endpoint_(context, std::move(config),
                {.message =
                     [this](transport::Peer&& peer, transport::Message&& message,
                            transport::CurveKey&& client) {
                       caf::anon_send(
                           session_, inbound_atom::value,
                           Inbound{std::move(peer), std::move(message), std::move(client)});
                     },
                 .lost =
                     [this](transport::Peer&& peer) {
                       caf::anon_send(session_, lost_atom::value, std::move(peer));
                     },
                 .stalled = std::move(warn)}) {}

Result<void> Bridge::start(SessionActor session) {
  session_ = std::move(session);
  return endpoint_.start();
}

void Bridge::stop() {
  endpoint_.stop();
  session_ = nullptr;
}

void Bridge::send(const transport::Peer& peer, std::shared_ptr<const std::string> frame) {
  endpoint_.send(peer, std::move(frame));
}

void Bridge::publish(const transport::StreamId& stream, std::shared_ptr<const std::string> frame) {
  endpoint_.publish(stream, std::move(frame));
}

void Bridge::post(std::vector<transport::Outgoing>&& frames) { endpoint_.post(std::move(frames)); }

NamedValues Bridge::stats() const {
  const auto stats = endpoint_.stats();
  NamedValues values{{"io.frames_in", static_cast<double>(stats.frames_in)},
                     {"io.frames_out", static_cast<double>(stats.frames_out)},
                     {"io.frames_malformed", static_cast<double>(stats.frames_malformed)},
                     {"io.frames_dropped", static_cast<double>(stats.frames_dropped)},
                     {"io.peers_lost", static_cast<double>(stats.peers_lost)},
                     {"io.clients_stalled", static_cast<double>(stats.clients_stalled)},
                     {"io.subscriptions", static_cast<double>(stats.subscriptions)}};
  if (secured_)
    values.insert(values.end(),
                  {{"security.frames_refused", static_cast<double>(stats.frames_refused)},
                   {"security.connections_cut", static_cast<double>(stats.connections_cut)}});
  return values;
}

void Bridge::cut_removed() { endpoint_.cut_removed(); }

const std::string& Bridge::address() const { return endpoint_.listen_address(); }

const std::string& Bridge::publish_address() const { return endpoint_.publish_address(); }

}  // namespace sluice::actors
