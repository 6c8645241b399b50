// Feeds a running peer endpoint messages of any parts, from a node that dialed it and from one that
// it dialed, over sockets in this process. Whatever comes, it goes on serving: at the end it
// answers twice, so that all before was taken.
//
// Input: operations of a byte that says whose connection (odd: the dialed one), a byte with the
// number of parts, and each part behind a byte with its length.

#include "transport/peer_endpoint.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <zmq.hpp>

#include "transport/node_protocol.hpp"

namespace {

using namespace sluice;
using namespace sluice::transport;

/// The endpoint takes so many from a socket before it looks at the next.
constexpr int messages_max = 64;
constexpr int patience_ms = 10'000;

void demand(bool holds) {
  if (!holds) std::abort();
}

std::string_view bytes_of(const zmq::message_t& part) {
  return {static_cast<const char*>(part.data()), part.size()};
}

/// The fuzzer's own timer may interrupt it.
zmq::message_t take(zmq::socket_t& socket) {
  zmq::message_t part;
  while (true) {
    try {
      demand(socket.recv(part).has_value());
      return part;
    } catch (const zmq::error_t& error) {
      demand(error.num() == EINTR);
    }
  }
}

/// Asks for a session of a number that nobody else uses; welcome or not, it is answered.
void probe(zmq::socket_t& dealer, std::uint64_t session) {
  const auto hello = encode(LinkHeader{LinkKind::hello, UINT64_MAX, session, 0, 0});
  dealer.send(zmq::buffer(hello), zmq::send_flags::sndmore);
  dealer.send(zmq::str_buffer("probe"));
  for (;;) {
    const auto header = take(dealer), payload = take(dealer);
    demand(header.more() && !payload.more());
    const auto said = decode_link_header(bytes_of(header));
    demand(said.has_value());
    if (said->session == session) return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  zmq::context_t context(0);  // its end waits for that of all sockets; they need no I/O thread
  zmq::socket_t listener(context, zmq::socket_type::router);
  listener.set(zmq::sockopt::rcvtimeo, patience_ms);
  listener.bind("inproc://far");

  PeerConfig config;
  config.listen = "inproc://near";
  config.join = {"inproc://far"};
  PeerEndpoint endpoint(context, config, {"node", 7},
                        {[](const LinkUp& up) { demand(!up.peer.name.empty()); },
                         [](const LinkDown& down) { demand(!down.why.message.empty()); },
                         [](const LinkFailed& failed) { demand(!failed.why.message.empty()); },
                         [](LinkId, std::string_view frame) -> Result<void> {
                           const auto message = decode(frame, NodeLimits{});
                           if (!message) return tl::unexpected(message.error());
                           return {};
                         }});
  demand(endpoint.start().has_value());
  const auto peer = take(listener);  // whom it sends to: its dialing socket
  zmq::socket_t dialer(context, zmq::socket_type::dealer);
  dialer.set(zmq::sockopt::rcvtimeo, patience_ms);
  dialer.connect(config.listen);

  const auto* const end = data + size;
  const auto byte = [&] { return data == end ? std::uint8_t{0} : *data++; };
  for (int i = 0; i < messages_max && data != end; ++i) {
    const bool dialed = byte() % 2 != 0;
    auto& socket = dialed ? listener : dialer;
    const int parts = byte() % 8;
    if (dialed && parts > 0) socket.send(zmq::buffer(bytes_of(peer)), zmq::send_flags::sndmore);
    for (int part = 1; part <= parts; ++part) {
      const auto count = std::min<std::size_t>(byte(), static_cast<std::size_t>(end - data));
      socket.send(zmq::buffer(data, count),
                  part < parts ? zmq::send_flags::sndmore : zmq::send_flags::none);
      data += count;
    }
  }
  probe(dialer, UINT64_MAX - 1);
  probe(dialer, UINT64_MAX);
  endpoint.stop();
  return 0;
}
