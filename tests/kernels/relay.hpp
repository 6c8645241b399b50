#pragma once
// Somebody on the network between two ranks: rank 1 calls the relay instead of rank 0, and the
// relay hands on what its script lets pass. It knows how long each message is, and no secret.

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

namespace sluice::kernels::test {

using Bytes = std::vector<std::byte>;

/// Bytes of what ranks say first (kernels/comm/seal.hpp): the caller's hello with its proof, the
/// called one's, and the caller's last proof.
namespace greeting {
inline constexpr std::size_t hello_bytes = 80;
inline constexpr std::size_t proof_bytes = 32;
}  // namespace greeting

/// A piece of so many bytes, as it is on a sealed connection: its header and itself, a tag each.
constexpr std::size_t sealed_bytes(std::size_t piece) { return 16 + 16 + piece + 16; }

// As tcp_start.cpp lays an address out: four words, the secret's 32 bytes, then the socket's.
inline constexpr std::size_t secret_at = 16, secret_bytes = 32, socket_at = 48;

inline sockaddr_in socket_of(const Bytes& address) {
  sockaddr_in socket{};
  std::memcpy(&socket, address.data() + socket_at, sizeof socket);
  return socket;
}

/// One end of a connection, for a script that waits. What fails ends the script.
class End {
 public:
  explicit End(int fd) : fd_(fd) {}
  End(End&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  End& operator=(End&&) = delete;
  ~End() {
    if (fd_ >= 0) ::close(fd_);
  }

  static End to(const sockaddr_in& where) {
    End end(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(end.fd_, reinterpret_cast<const sockaddr*>(&where), sizeof where) != 0) {
      throw std::runtime_error("no rank listens there");
    }
    return end;
  }

  /// Up to `count` bytes: fewer when the other end has closed.
  Bytes take(std::size_t count) {
    Bytes bytes(count);
    std::size_t got = 0;
    while (got < count) {
      const ssize_t n = ::recv(fd_, bytes.data() + got, count - got, 0);
      if (n <= 0) break;
      got += static_cast<std::size_t>(n);
    }
    bytes.resize(got);
    return bytes;
  }

  void give(const Bytes& bytes) {
    // Who is gone by now has judged already.
    (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }

  int descriptor() const { return fd_; }

 private:
  int fd_;
};

/// Runs its script beside the rank that calls: with the ends towards rank 1 and rank 0.
class Relay {
 public:
  using Script = std::function<void(End& caller, End& called)>;

  /// Rank 0's `address` is the relay's from now on.
  Relay(Bytes& address, Script script) : listener_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const sockaddr_in called = socket_of(address);
    sockaddr_in own{};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof own;
    auto* name = reinterpret_cast<sockaddr*>(&own);
    if (::bind(listener_.descriptor(), name, length) != 0 ||
        ::listen(listener_.descriptor(), 4) != 0 ||
        ::getsockname(listener_.descriptor(), name, &length) != 0) {
      throw std::runtime_error("the relay has no port");
    }
    std::memcpy(address.data() + socket_at, &own, sizeof own);
    thread_ = std::thread([this, called, script = std::move(script)] {
      End caller(::accept4(listener_.descriptor(), nullptr, nullptr, SOCK_CLOEXEC));
      End to_called = End::to(called);
      script(caller, to_called);
    });
  }
  ~Relay() { thread_.join(); }
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

 private:
  End listener_;
  std::thread thread_;
};

/// Hands on the greeting as it is.
inline void pass_greeting(End& caller, End& called) {
  called.give(caller.take(greeting::hello_bytes));
  caller.give(called.take(greeting::hello_bytes));
  called.give(caller.take(greeting::proof_bytes));
}

}  // namespace sluice::kernels::test
