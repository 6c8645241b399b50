#pragma once
// What the owners of ZeroMQ sockets share.

#include <string_view>
#include <zmq.hpp>

namespace sluice::transport {

inline std::string_view bytes_of(const zmq::message_t& message) {
  return {static_cast<const char*>(message.data()), message.size()};
}

/// Whether a receive would find something. When not, the socket's descriptor becomes readable with
/// what is new from here on, provided that nothing is sent.
inline bool has_input(const zmq::socket_t& socket) {
  return (socket.get(zmq::sockopt::events) & ZMQ_POLLIN) != 0;
}

}  // namespace sluice::transport
