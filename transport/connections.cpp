#include "transport/connections.hpp"

#include <arpa/inet.h>
#include <linux/tcp.h>  // glibc's own tcp_info ends before what is needed here
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <optional>
#include <zmq.hpp>

namespace sluice::transport {
namespace {

/// Connections that are looked at between two turns of the other work: some 50 us.
constexpr int batch = 64;

std::uint64_t cookie_of(int descriptor) {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return getsockopt(descriptor, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

struct Progress {
  std::uint64_t taken_bytes;
  bool waiting;
};

/// None where it is not TCP. A peer that reads nothing acknowledges the probes of its closed window
/// without end, but no bytes.
std::optional<Progress> progress_of(int descriptor) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return std::nullopt;
  return Progress{info.tcpi_bytes_acked, info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0};
}

std::string address_of(int descriptor) {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  std::array<char, INET6_ADDRSTRLEN> host{};
  if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) == 0) {
    if (const auto* v4 = reinterpret_cast<const sockaddr_in*>(&peer); peer.ss_family == AF_INET)
      return fmt::format("{}:{}", inet_ntop(AF_INET, &v4->sin_addr, host.data(), host.size()),
                         ntohs(v4->sin_port));
    if (const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&peer); peer.ss_family == AF_INET6)
      return fmt::format("[{}]:{}", inet_ntop(AF_INET6, &v6->sin6_addr, host.data(), host.size()),
                         ntohs(v6->sin6_port));
  }
  return "an unknown address";
}

/// The kernel's own counts from the first time that the window was closed, also if it opens at
/// times: it would end a peer that is slow.
void lift_kernel_limit(int descriptor) {
  constexpr unsigned none = 0;
  setsockopt(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, &none, sizeof none);
}

/// libzmq owns the descriptor, reads its end and closes it. Only for what has still its cookie.
bool end(int descriptor) { return shutdown(descriptor, SHUT_RDWR) == 0; }

/// The same, with nothing left to the kernel, which would try to deliver it for minutes.
bool end_at_once(int descriptor) {
  constexpr linger none{1, 0};
  setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &none, sizeof none);
  return end(descriptor);
}

}  // namespace

bool Stall::look(std::uint64_t taken_bytes, bool waiting, std::uint64_t now_ns,
                 std::uint64_t limit_ns) {
  const std::uint64_t passed_ns = std::min(now_ns - looked_ns_, 2 * limit_ns / looks);
  stalled_ns_ = stalled_ && waiting && taken_bytes == taken_bytes_ ? stalled_ns_ + passed_ns : 0;
  stalled_ = waiting;
  taken_bytes_ = taken_bytes;
  looked_ns_ = now_ns;
  return stalled_ns_ >= limit_ns;
}

void Connections::note(zmq::message_t& message, const CurveKey& key) {
  const int descriptor = zmq_msg_get(message.handle(), ZMQ_SRCFD);
  if (descriptor < 0) return;  // inproc
  auto& connection = by_descriptor_[descriptor];
  const std::uint64_t cookie = cookie_of(descriptor);
  if (connection.cookie == cookie && connection.key == key) return;
  connection = {cookie, key, {}};
}

std::size_t Connections::cut(const std::function<bool(const CurveKey&)>& allowed) {
  std::size_t count = 0;
  for (auto at = by_descriptor_.begin(); at != by_descriptor_.end();) {
    const auto& [descriptor, connection] = *at;
    if (allowed(connection.key)) {
      ++at;
      continue;
    }
    if (connection.cookie != 0 && cookie_of(descriptor) == connection.cookie && end(descriptor))
      ++count;
    at = by_descriptor_.erase(at);
  }
  return count;
}

bool Connections::end_stalled(std::uint64_t now_ns, std::uint64_t limit_ns,
                              std::vector<Stalled>& ended) {
  auto at = by_descriptor_.lower_bound(next_);
  for (int i = 0; i < batch && at != by_descriptor_.end(); ++i) {
    auto& [descriptor, connection] = *at;
    if (connection.cookie == 0 || cookie_of(descriptor) != connection.cookie) {  // closed meanwhile
      at = by_descriptor_.erase(at);
      continue;
    }
    if (!connection.stall.looked()) lift_kernel_limit(descriptor);
    const auto progress = progress_of(descriptor);
    if (progress &&
        connection.stall.look(progress->taken_bytes, progress->waiting, now_ns, limit_ns)) {
      ended.push_back({address_of(descriptor), connection.key});
      if (cookie_of(descriptor) == connection.cookie) end_at_once(descriptor);
      at = by_descriptor_.erase(at);
      continue;
    }
    ++at;
  }
  next_ = at == by_descriptor_.end() ? 0 : at->first;
  return at != by_descriptor_.end();
}

}  // namespace sluice::transport
