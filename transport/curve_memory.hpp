#pragma once
// Memory of libzmq's CURVE handshakes (curve_memory.cpp).

#include <cstdint>

namespace sluice::transport {

/// How often a handshake found its memory made. Whoever speaks CURVE as a server calls this once,
/// so that the functions which libzmq then takes are part of the program. Any thread.
std::uint64_t handshake_memory_reused();

}  // namespace sluice::transport
