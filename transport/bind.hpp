#pragma once
// Binding a socket, with errors that name the endpoint and the remedy.

#include <string>

#include "kernels/core.hpp"

namespace zmq {
class socket_t;
}

namespace sluice::transport {

/// Returns the address as bound. `bad_request` for what is no endpoint, `io` for one that cannot be
/// had: also an ipc path where another node listens, or where no socket lies.
Result<std::string> bind_to(zmq::socket_t& socket, const std::string& address);

}  // namespace sluice::transport
