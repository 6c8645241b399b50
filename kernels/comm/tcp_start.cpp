// How a group of processes comes to be connected. Each rank listens on a port of its own; the
// higher rank of two calls the lower. Both show that they were told the other's secret before
// anything else is read, so that a stranger at the port changes nothing.

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <random>

#include "kernels/comm/sockets.hpp"

namespace sluice::kernels {
namespace comm {
namespace {

constexpr std::uint32_t ranks_max = 64;
constexpr std::uint32_t deadline_ms_max = 1'000'000;

/// Callers that have not said who they are; the oldest gives way to a new one.
constexpr std::size_t strangers_max = 64;

using Secret = std::array<std::uint32_t, 4>;

/// The first bytes on a connection, both ways: who speaks, and the secret of who is spoken to.
struct Hello {
  static constexpr std::uint32_t magic_now = 0x31475053;
  std::uint32_t magic = magic_now;
  std::uint32_t rank = 0;
  std::uint32_t size = 0;
  std::uint32_t reserved = 0;
  Secret secret{};
};

struct Address {
  std::uint32_t magic = Hello::magic_now;
  std::uint32_t rank = 0;
  std::uint32_t size = 0;
  std::uint32_t socket_bytes = 0;
  Secret secret{};
  sockaddr_storage socket{};
};

/// A connection that has yet to say hello.
struct Caller {
  Descriptor socket;
  Hello hello;
  std::size_t got = 0;
};

enum class Heard : std::uint8_t { all, part, nothing_more };

/// Reads what there is of a hello; `nothing_more`: the connection ended.
Heard hear(Caller& caller) {
  while (caller.got < sizeof caller.hello) {
    const ssize_t n = ::recv(caller.socket.get(), reinterpret_cast<char*>(&caller.hello) +
                             caller.got, sizeof caller.hello - caller.got, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return Heard::part;
    if (n <= 0) return Heard::nothing_more;
    caller.got += static_cast<std::size_t>(n);
  }
  return Heard::all;
}

bool send_at_once(const Descriptor& socket) {
  const int on = 1;
  return ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0;
}

bool is_wildcard(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr == INADDR_ANY;
  }
  return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr) != 0;
}

class TcpStart final : public GroupStart {
 public:
  TcpStart(const Shard& shard, std::uint32_t deadline_ms) : shard_(shard), deadline_(deadline_ms) {}

  /// Listens on any port of `host`.
  Result<void> listen(const std::string& host) {
    const auto refuse = [&](const char* why) {
      return fail(ErrorCode::io, "rank {} of {} cannot listen on '{}': {}", shard_.rank,
                  shard_.size, host, why);
    };
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (const int error = ::getaddrinfo(host.c_str(), "0", &hints, &found); error != 0) {
      return fail(ErrorCode::bad_request, "'{}' is no address for a rank to listen on: {}", host,
                  ::gai_strerror(error));
    }
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
    listener_ = Descriptor(
        ::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!listener_) return refuse(std::strerror(errno));
    if (::bind(listener_.get(), found->ai_addr, found->ai_addrlen) != 0) {
      if (errno != EADDRNOTAVAIL) return refuse(std::strerror(errno));
      return fail(ErrorCode::bad_request,
                  "'{}' is none of this host's addresses: name one that the other ranks reach",
                  host);
    }
    socklen_t length = sizeof own_.socket;
    auto* name = reinterpret_cast<sockaddr*>(&own_.socket);
    if (::listen(listener_.get(), SOMAXCONN) != 0 ||
        ::getsockname(listener_.get(), name, &length) != 0) {
      return refuse(std::strerror(errno));
    }
    if (is_wildcard(own_.socket)) {
      return fail(ErrorCode::bad_request,
                  "'{}' is every address of this host: name one that the other ranks reach", host);
    }
    wake_ = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_) return refuse(std::strerror(errno));
    own_.rank = shard_.rank;
    own_.size = shard_.size;
    own_.socket_bytes = length;
    std::random_device random;
    for (std::uint32_t& word : own_.secret) word = random();
    address_.resize(sizeof own_);
    std::memcpy(address_.data(), &own_, sizeof own_);
    return {};
  }

  Shard shard() const override { return shard_; }
  const std::vector<std::byte>& address() const override { return address_; }

  Result<std::shared_ptr<Communicator>> connect(
      std::span<const std::vector<std::byte>> addresses, std::uint32_t timeout_ms) override {
    SLUICE_ASSERT(!connected_, "a group's start connects once");
    connected_ = true;
    const auto until = Clock::now() + std::chrono::milliseconds(timeout_ms);
    if (auto fit = read(addresses); !fit) return tl::unexpected(fit.error());
    met_.resize(shard_.size);
    called_.resize(shard_.size);
    greeted_.resize(shard_.size);
    for (std::uint32_t r = 0; r < shard_.rank; ++r) {
      if (auto called = call(r); !called) return tl::unexpected(called.error());
    }
    while (missing() > 0) {
      const int left_ms = remaining_ms(until);
      if (left_ms == 0) return late(timeout_ms);
      if (auto done = wait(left_ms); !done) return tl::unexpected(done.error());
    }
    Descriptor wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake) return fail(ErrorCode::io, "{}: {}", place(), std::strerror(errno));
    listener_ = Descriptor();
    strangers_.clear();
    return make_tcp_communicator(shard_, deadline_, std::move(met_), std::move(wake));
  }

  void cancel() override {
    cancelled_ = true;
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
  }

 private:
  std::string place() const {
    return fmt::format("starting rank {} of {}", shard_.rank, shard_.size);
  }

  Result<void> read(std::span<const std::vector<std::byte>> addresses) {
    if (addresses.size() != shard_.size) {
      return fail(ErrorCode::bad_request, "{}: {} addresses for {} ranks", place(),
                  addresses.size(), shard_.size);
    }
    ranks_.resize(shard_.size);
    for (std::uint32_t r = 0; r < shard_.size; ++r) {
      Address& address = ranks_[r];
      const bool whole = addresses[r].size() == sizeof address;
      if (whole) std::memcpy(&address, addresses[r].data(), sizeof address);
      if (!whole || address.magic != Hello::magic_now || address.rank != r ||
          address.size != shard_.size || address.socket_bytes > sizeof address.socket) {
        return fail(ErrorCode::bad_request,
                    "{}: address {} is not rank {}'s of a group of {}, or of another version: "
                    "every rank must run the same build",
                    place(), r, r, shard_.size);
      }
    }
    if (addresses[shard_.rank] != address_) {
      return fail(ErrorCode::bad_request, "{}: address {} is not this rank's own", place(),
                  shard_.rank);
    }
    return {};
  }

  std::size_t missing() const {
    std::size_t count = 0;
    for (std::uint32_t r = 0; r < shard_.size; ++r) count += r != shard_.rank && !met_[r];
    return count;
  }

  tl::unexpected<Error> late(std::uint32_t timeout_ms) const {
    std::vector<std::uint32_t> ranks;
    for (std::uint32_t r = 0; r < shard_.size; ++r) {
      if (r != shard_.rank && !met_[r]) ranks.push_back(r);
    }
    return fail(ErrorCode::deadline,
                "{}: no word from rank {} within {} ms: see whether it runs, and whether its "
                "host's address can be reached from here",
                place(), fmt::join(ranks, ", "), timeout_ms);
  }

  tl::unexpected<Error> gone(std::uint32_t rank, const char* why) const {
    return fail(ErrorCode::unavailable,
                "{}: rank {} cannot be reached ({}): its process ended, or gave the start up",
                place(), rank, why);
  }

  Hello hello_to(std::uint32_t rank) const {
    return {Hello::magic_now, shard_.rank, shard_.size, 0, ranks_[rank].secret};
  }

  /// Whether a hello is a rank's that was told this one's secret.
  bool knows(const Hello& hello) const {
    return hello.magic == Hello::magic_now && hello.size == shard_.size &&
           hello.secret == own_.secret;
  }

  /// A new socket's buffer takes these few bytes whole.
  bool greet(const Descriptor& socket, std::uint32_t rank) const {
    const Hello hello = hello_to(rank);
    return ::send(socket.get(), &hello, sizeof hello, MSG_NOSIGNAL | MSG_DONTWAIT) ==
           static_cast<ssize_t>(sizeof hello);
  }

  Result<void> call(std::uint32_t rank) {
    const Address& to = ranks_[rank];
    Descriptor socket(
        ::socket(to.socket.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket || !send_at_once(socket)) return gone(rank, std::strerror(errno));
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&to.socket), to.socket_bytes) !=
            0 &&
        errno != EINPROGRESS) {
      return gone(rank, std::strerror(errno));
    }
    called_[rank].socket = std::move(socket);
    return {};
  }

  /// Waits for something to happen, and deals with all of it.
  Result<void> wait(int timeout_ms) {
    std::vector<pollfd> polled{{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    for (std::uint32_t r = 0; r < shard_.rank; ++r) {
      const Caller& called = called_[r];
      const short events = greeted_[r] ? POLLIN : POLLOUT;
      polled.push_back({met_[r] ? -1 : called.socket.get(), events, 0});
    }
    for (const Caller& stranger : strangers_) polled.push_back({stranger.socket.get(), POLLIN, 0});
    ::poll(polled.data(), polled.size(), timeout_ms);
    if (cancelled_) return fail(ErrorCode::unavailable, "{}: cancelled", place());
    for (std::uint32_t r = 0; r < shard_.rank; ++r) {
      if (met_[r] || polled[2 + r].revents == 0) continue;
      if (auto answered = answer(r); !answered) return answered;
    }
    std::erase_if(strangers_, [this](Caller& caller) { return recognise(caller); });
    if (polled[1].revents != 0) accept();
    return {};
  }

  /// A lower rank's side of the connection moved on: it took the call, or it answered.
  Result<void> answer(std::uint32_t rank) {
    Caller& called = called_[rank];
    if (!greeted_[rank]) {
      int error = 0;
      socklen_t length = sizeof error;
      ::getsockopt(called.socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
      if (error != 0) return gone(rank, std::strerror(error));
      if (!greet(called.socket, rank)) return gone(rank, std::strerror(errno));
      greeted_[rank] = true;
      return {};
    }
    switch (hear(called)) {
      case Heard::part: return {};
      case Heard::nothing_more: return gone(rank, "it closed the connection");
      case Heard::all: break;
    }
    if (!knows(called.hello) || called.hello.rank != rank) {
      return gone(rank, "what answers there does not know this group");
    }
    met_[rank] = std::move(called.socket);
    return {};
  }

  void accept() {
    for (;;) {
      Descriptor socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket) return;
      if (strangers_.size() == strangers_max) strangers_.pop_front();
      strangers_.push_back({std::move(socket), {}, 0});
    }
  }

  /// Whether a caller is a stranger no more: a rank that is met now, or one to hang up on.
  bool recognise(Caller& caller) {
    switch (hear(caller)) {
      case Heard::part: return false;
      case Heard::nothing_more: return true;
      case Heard::all: break;
    }
    const std::uint32_t rank = caller.hello.rank;
    if (!knows(caller.hello) || rank <= shard_.rank || rank >= shard_.size || met_[rank]) {
      return true;
    }
    if (send_at_once(caller.socket) && greet(caller.socket, rank)) {
      met_[rank] = std::move(caller.socket);
    }
    return true;
  }

  Shard shard_;
  std::chrono::milliseconds deadline_;
  Descriptor listener_, wake_;
  Address own_;
  std::vector<std::byte> address_;
  bool connected_ = false;
  std::atomic<bool> cancelled_{false};

  // While it connects.
  std::vector<Address> ranks_;
  std::vector<Descriptor> met_;  ///< connections that are known to lead to their rank
  std::vector<Caller> called_;   ///< to lower ranks
  std::vector<bool> greeted_;     ///< whom this rank has said hello to
  std::deque<Caller> strangers_;
};

}  // namespace
}  // namespace comm

Result<std::unique_ptr<GroupStart>> prepare_tcp(const Shard& shard,
                                                const CommunicatorOptions& options) {
  if (shard.size == 0 || shard.size > comm::ranks_max || shard.rank >= shard.size) {
    return fail(ErrorCode::bad_request, "rank {} of {}: a group has 1 to {} ranks, from 0 on",
                shard.rank, shard.size, comm::ranks_max);
  }
  if (options.deadline_ms == 0 || options.deadline_ms > comm::deadline_ms_max) {
    return fail(ErrorCode::bad_request, "a deadline of {} ms: from 1 to {}", options.deadline_ms,
                comm::deadline_ms_max);
  }
  auto start = std::make_unique<comm::TcpStart>(shard, options.deadline_ms);
  if (auto listening = start->listen(options.host); !listening) {
    return tl::unexpected(listening.error());
  }
  return start;
}

}  // namespace sluice::kernels
