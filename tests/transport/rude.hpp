#pragma once
// Peers that send what nobody should, and leave.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <random>
#include <string>
#include <zmq.hpp>

namespace sluice::fakes {

/// Bytes that no msgpack message begins with.
inline std::string junk(std::mt19937_64& random, std::size_t bytes_max) {
  std::string bytes(1 + random() % bytes_max, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  bytes[0] = static_cast<char>(0xc1);
  return bytes;
}

/// Connects to a tcp://127.0.0.1 address without speaking ZMTP, sends junk and leaves.
inline void visit_as_stranger(const std::string& address, std::mt19937_64& random) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port =
      htons(static_cast<std::uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int raw = socket(AF_INET, SOCK_STREAM, 0);
  BOOST_REQUIRE_EQUAL(connect(raw, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  const std::string bytes = junk(random, 300);
  [[maybe_unused]] const auto sent = send(raw, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  close(raw);
}

/// Speaks ZMTP, then nonsense, `frames` times; waits for one answer, so that they arrived.
inline void visit_with_nonsense(zmq::context_t& context, const std::string& address, int frames,
                                std::mt19937_64& random) {
  zmq::socket_t socket(context, zmq::socket_type::dealer);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::rcvtimeo, 30'000);
  socket.connect(address);
  for (int i = 0; i < frames; ++i) socket.send(zmq::buffer(junk(random, 200)));
  zmq::message_t answer;
  BOOST_REQUIRE(socket.recv(answer));
}

}  // namespace sluice::fakes
