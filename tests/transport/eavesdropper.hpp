#pragma once
// Who sits between two ends and records.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <string>
#include <thread>

namespace sluice::fakes {

/// A connection to a tcp://127.0.0.1 address that speaks nothing yet.
inline int tcp_to(const std::string& address) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port =
      htons(static_cast<std::uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int raw = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  BOOST_REQUIRE(raw >= 0);
  BOOST_REQUIRE_EQUAL(connect(raw, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  return raw;
}

/// Passes bytes between one client and a node, and keeps what the client said.
class Eavesdropper {
 public:
  // Connects here: checks are for the test's own thread.
  explicit Eavesdropper(const std::string& node) : node_(tcp_to(node)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof any;
    BOOST_REQUIRE_EQUAL(bind(listener_, reinterpret_cast<sockaddr*>(&any), size), 0);
    BOOST_REQUIRE_EQUAL(listen(listener_, 4), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&any), &size);
    address_ = "tcp://127.0.0.1:" + std::to_string(ntohs(any.sin_port));
    thread_ = std::thread([this] { run(); });
  }
  ~Eavesdropper() {
    thread_.join();
    close(listener_);
  }
  const std::string& address() const { return address_; }
  /// After the client left.
  std::string heard() {
    while (!over_) poll(nullptr, 0, 1);
    return heard_;
  }

 private:
  void run() {
    const int client = accept(listener_, nullptr, nullptr);
    for (bool open = true; open;) {
      pollfd ends[2] = {{client, POLLIN, 0}, {node_, POLLIN, 0}};
      poll(ends, 2, -1);
      for (const int from : {0, 1}) {
        if (ends[from].revents == 0) continue;
        char bytes[4096];
        const ssize_t count = recv(ends[from].fd, bytes, sizeof bytes, 0);
        open = open && count > 0;
        if (count <= 0) continue;
        if (from == 0) heard_.append(bytes, static_cast<std::size_t>(count));
        send(ends[1 - from].fd, bytes, static_cast<std::size_t>(count), MSG_NOSIGNAL);
      }
    }
    close(client);
    close(node_);
    over_ = true;
  }

  const int node_;
  std::string address_, heard_;
  int listener_ = -1;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

}  // namespace sluice::fakes
