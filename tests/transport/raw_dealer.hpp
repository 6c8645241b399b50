#pragma once
// A client that speaks ZMTP 3.0 by hand over bare TCP: it takes from the connection what it is told
// to and nothing more, as no ZeroMQ socket does, whose threads read on their own.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <optional>
#include <string>

namespace sluice::fakes {

class RawDealer {
 public:
  /// To a tcp://127.0.0.1 address, with little room for what is not read. `identity` is the name
  /// that the ROUTER is to know it by; empty: the ROUTER chooses.
  explicit RawDealer(const std::string& address, const std::string& identity = "")
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int little = 4096;
    BOOST_REQUIRE_EQUAL(setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &little, sizeof little), 0);
    const timeval patience{30, 0};
    BOOST_REQUIRE_EQUAL(setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port =
        htons(static_cast<std::uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    BOOST_REQUIRE_EQUAL(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    std::string greeting("\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL", 16);
    greeting.resize(64);
    std::string ready("\x05READY\x0bSocket-Type\0\0\0\6DEALER", 28);
    if (!identity.empty())
      ready +=
          std::string("\x08Identity\0\0\0", 12) + static_cast<char>(identity.size()) + identity;
    say(greeting + '\x04' + static_cast<char>(ready.size()) + ready);
    // The node's own. What is said before it was read may come too soon.
    const std::string head = exactly(greeting.size() + 2);
    exactly(static_cast<unsigned char>(head.back()));
  }
  RawDealer(const RawDealer&) = delete;
  RawDealer& operator=(const RawDealer&) = delete;
  ~RawDealer() { close(fd_); }

  /// One message of one frame.
  void send(const std::string& frame) {
    std::string head(1, '\x02');
    for (int shift = 56; shift >= 0; shift -= 8)
      head += static_cast<char>(std::uint64_t{frame.size()} >> shift);
    say(head + frame);
  }

  /// Says that nothing follows.
  void finish() { shutdown(fd_, SHUT_WR); }

  /// Whether a read would find something.
  bool readable() const {
    pollfd descriptor{fd_, POLLIN, 0};
    return poll(&descriptor, 1, 0) == 1;
  }

  /// Reads so many bytes at most, and waits for the first: how many, 0 at the end, -1 when the
  /// connection was broken off, or nothing came for half a minute.
  ssize_t read(std::size_t bytes_max) {
    std::string bytes(bytes_max, '\0');
    const ssize_t count = recv(fd_, bytes.data(), bytes.size(), 0);
    if (count > 0) read_.append(bytes, 0, static_cast<std::size_t>(count));
    return count;
  }

  /// The next message of what was read, if it is there as a whole.
  std::optional<std::string> message() {
    while (at_ + 2 <= read_.size()) {
      const int flags = read_[at_];
      const std::size_t head = (flags & 2) != 0 ? 9 : 2;
      if (at_ + head > read_.size()) break;
      std::size_t size = 0;
      for (std::size_t i = 1; i < head; ++i)
        size = size << 8 | static_cast<unsigned char>(read_[at_ + i]);
      if (at_ + head + size > read_.size()) break;
      at_ += head + size;
      if ((flags & 4) == 0) return read_.substr(at_ - size, size);  // no command
    }
    return std::nullopt;
  }

 private:
  void say(const std::string& bytes) {
    BOOST_REQUIRE_EQUAL(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
                        static_cast<ssize_t>(bytes.size()));
  }

  std::string exactly(std::size_t bytes) const {
    std::string all(bytes, '\0');
    BOOST_REQUIRE_EQUAL(recv(fd_, all.data(), bytes, MSG_WAITALL), static_cast<ssize_t>(bytes));
    return all;
  }

  int fd_;
  std::string read_;
  std::size_t at_ = 0;  // of read_: what comes after the messages that were taken
};

}  // namespace sluice::fakes
