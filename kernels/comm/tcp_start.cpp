// How a group of processes comes to be connected. Each rank listens on a port of its own; the
// higher rank of two calls the lower. Each proves that it knows the other's secret (seal.hpp)
// before anything else is read, so that a stranger at the port changes nothing.

#include <net/if.h>
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

#include "kernels/comm/sockets.hpp"

namespace sluice::kernels {
namespace comm {
namespace {

constexpr std::uint32_t ranks_max = 64;
constexpr std::uint32_t deadline_ms_max = 1'000'000;

/// Callers that are not known yet. A new one takes the place of the oldest that has proven nothing.
constexpr std::size_t strangers_max = 64;

/// A hello as it is sent: whoever has not the pair's secrets cannot prove it.
struct Spoken {
  Hello hello;
  Proof proof{};
};

struct Address {
  std::uint32_t magic = Hello::magic_now;
  std::uint32_t rank = 0;
  std::uint32_t size = 0;
  std::uint32_t socket_bytes = 0;
  Key secret{};
  sockaddr_storage socket{};
};

/// A connection that has yet to be known.
struct Caller {
  Descriptor socket;
  std::array<std::byte, sizeof(Spoken)> heard{};
  std::size_t got = 0;
  Hello own;                    ///< what this rank said on it
  std::optional<Hello> theirs;  ///< proven; what lacks is that it was said now
};

enum class Heard : std::uint8_t { all, part, nothing_more };

/// Reads what there is of so many bytes; `nothing_more`: the connection ended.
Heard hear(Caller& caller, std::size_t bytes) {
  while (caller.got < bytes) {
    const ssize_t n = ::recv(caller.socket.get(), caller.heard.data() + caller.got,
                             bytes - caller.got, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return Heard::part;
    if (n <= 0) return Heard::nothing_more;
    caller.got += static_cast<std::size_t>(n);
  }
  return Heard::all;
}

/// A new socket's buffer takes these few bytes whole.
template <class Message>
bool say(const Descriptor& socket, const Message& message) {
  return ::send(socket.get(), &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(sizeof message);
}

template <class Message>
Message heard(const Caller& caller) {
  Message message;
  std::memcpy(&message, caller.heard.data(), sizeof message);
  return message;
}

/// What is said from now on between two ranks that greeted each other.
Connection connection(Descriptor socket, const Pair& pair, const Hello& caller,
                      const Hello& called, bool as_caller) {
  if (((caller.wishes | called.wishes) & Hello::wants_sealed) == 0) {
    return {std::move(socket), std::nullopt};
  }
  const bool aes = (caller.wishes & called.wishes & Hello::has_aes) != 0;
  const auto [to_called, to_caller] = pair.keys(caller, called);
  return {std::move(socket), Connection::Seals{Seal(as_caller ? to_called : to_caller, aes),
                                               Seal(as_caller ? to_caller : to_called, aes)}};
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

/// What goes there does not leave this host.
bool is_loopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    return (ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24) == 127;
  }
  return address.ss_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr) != 0;
}

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<Addresses> look_up(const std::string& host, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), "0", &hints, &found); error != 0) {
    return fail(ErrorCode::bad_request, "'{}' is no address for a rank to listen on: {}", host,
                ::gai_strerror(error));
  }
  return Addresses(found, &::freeaddrinfo);
}

class TcpStart final : public GroupStart {
 public:
  TcpStart(const Shard& shard, std::uint32_t deadline_ms) : shard_(shard), deadline_(deadline_ms) {}

  /// Listens on any port of the host.
  Result<void> listen(const CommunicatorOptions& options) {
    const std::string& host = options.host;
    const auto refuse = [&](const char* why) {
      return fail(ErrorCode::io, "rank {} of {} cannot listen on '{}': {}", shard_.rank,
                  shard_.size, host, why);
    };
    const auto found = look_up(host, AI_NUMERICHOST);
    if (!found) return tl::unexpected(found.error());
    listener_ = Descriptor(
        ::socket((*found)->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!listener_) return refuse(std::strerror(errno));
    if (::bind(listener_.get(), (*found)->ai_addr, (*found)->ai_addrlen) != 0) {
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
    ::randombytes_buf(own_.secret.data(), own_.secret.size());
    // The one place that decides it. A rank on loopback is reached by this host alone, where who
    // may listen in may read the ranks' memory too; and large pieces take some four times longer
    // sealed.
    if (options.seal_loopback || !is_loopback(own_.socket)) wishes_ |= Hello::wants_sealed;
    if (Seal::has_aes()) wishes_ |= Hello::has_aes;
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
    for (std::uint32_t r = 0; r < shard_.size; ++r) count += r != shard_.rank && !met_[r].socket;
    return count;
  }

  tl::unexpected<Error> late(std::uint32_t timeout_ms) const {
    std::vector<std::uint32_t> ranks;
    for (std::uint32_t r = 0; r < shard_.size; ++r) {
      if (r != shard_.rank && !met_[r].socket) ranks.push_back(r);
    }
    return fail(ErrorCode::deadline,
                "{}: no word from rank {} within {} ms: see whether it runs, and whether its "
                "host's address can be reached from here",
                place(), fmt::join(ranks, ", "), timeout_ms);
  }

  tl::unexpected<Error> gone(std::uint32_t rank, const char* why) const {
    return fail(ErrorCode::unavailable,
                "{}: rank {} cannot be reached ({}): its process ended, gave the start up, or does "
                "not know this group",
                place(), rank, why);
  }

  Hello new_hello() const {
    Hello hello{Hello::magic_now, shard_.rank, shard_.size, wishes_, {}};
    ::randombytes_buf(hello.random.data(), hello.random.size());
    return hello;
  }

  Pair pair_with(std::uint32_t rank) const {
    return Pair(ranks_[std::min(rank, shard_.rank)].secret,
                ranks_[std::max(rank, shard_.rank)].secret);
  }

  bool is_of_group(const Hello& hello) const {
    return hello.magic == Hello::magic_now && hello.size == shard_.size;
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
      polled.push_back({met_[r].socket ? -1 : called.socket.get(), events, 0});
    }
    for (const Caller& stranger : strangers_) polled.push_back({stranger.socket.get(), POLLIN, 0});
    ::poll(polled.data(), polled.size(), timeout_ms);
    if (cancelled_) return fail(ErrorCode::unavailable, "{}: cancelled", place());
    for (std::uint32_t r = 0; r < shard_.rank; ++r) {
      if (met_[r].socket || polled[2 + r].revents == 0) continue;
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
      called.own = new_hello();
      if (!say(called.socket, Spoken{called.own, pair_with(rank).caller(called.own)})) {
        return gone(rank, std::strerror(errno));
      }
      greeted_[rank] = true;
      return {};
    }
    switch (hear(called, sizeof(Spoken))) {
      case Heard::part: return {};
      case Heard::nothing_more: return gone(rank, "it closed the connection");
      case Heard::all: break;
    }
    const Pair pair = pair_with(rank);
    const auto [theirs, proof] = heard<Spoken>(called);
    if (!is_of_group(theirs) || theirs.rank != rank ||
        !same(proof, pair.called(called.own, theirs))) {
      return gone(rank, "what answers there does not know this group");
    }
    if (!say(called.socket, pair.met(called.own, theirs))) {
      return gone(rank, std::strerror(errno));
    }
    met_[rank] = connection(std::move(called.socket), pair, called.own, theirs, true);
    return {};
  }

  void accept() {
    for (;;) {
      Descriptor socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket) return;
      if (strangers_.size() == strangers_max) {
        const auto silent = std::ranges::find_if(strangers_, [](auto& who) { return !who.theirs; });
        strangers_.erase(silent == strangers_.end() ? strangers_.begin() : silent);
      }
      strangers_.push_back({std::move(socket), {}, 0, {}, {}});
    }
  }

  /// Whether a caller is a stranger no more: a rank that is met now, or one to hang up on.
  bool recognise(Caller& caller) {
    switch (hear(caller, caller.theirs ? sizeof(Proof) : sizeof(Spoken))) {
      case Heard::part: return false;
      case Heard::nothing_more: return true;
      case Heard::all: break;
    }
    if (!caller.theirs) return !greet(caller);
    const Hello& theirs = *caller.theirs;
    const Pair pair = pair_with(theirs.rank);
    if (met_[theirs.rank].socket || !same(heard<Proof>(caller), pair.met(theirs, caller.own))) {
      return true;
    }
    met_[theirs.rank] = connection(std::move(caller.socket), pair, theirs, caller.own, false);
    return true;
  }

  /// Answers a rank's hello. False: it is none's of this group.
  bool greet(Caller& caller) {
    const auto [theirs, proof] = heard<Spoken>(caller);
    if (!is_of_group(theirs) || theirs.rank <= shard_.rank || theirs.rank >= shard_.size ||
        met_[theirs.rank].socket) {
      return false;
    }
    const Pair pair = pair_with(theirs.rank);
    if (!same(proof, pair.caller(theirs))) return false;
    caller.own = new_hello();
    caller.theirs = theirs;
    caller.got = 0;
    return send_at_once(caller.socket) &&
           say(caller.socket, Spoken{caller.own, pair.called(theirs, caller.own)});
  }

  Shard shard_;
  std::chrono::milliseconds deadline_;
  Descriptor listener_, wake_;
  Address own_;
  std::uint32_t wishes_ = 0;
  std::vector<std::byte> address_;
  bool connected_ = false;
  std::atomic<bool> cancelled_{false};

  // While it connects.
  std::vector<Address> ranks_;
  std::vector<Connection> met_;  ///< known to lead to their rank
  std::vector<Caller> called_;   ///< to lower ranks
  std::vector<bool> greeted_;     ///< whom this rank has said hello to
  std::deque<Caller> strangers_;
};

}  // namespace
}  // namespace comm

Result<std::string> resolve_host(const std::string& host) {
  const auto found = comm::look_up(host, 0);
  if (!found) return tl::unexpected(found.error());
  char digits[INET6_ADDRSTRLEN + IF_NAMESIZE + 1] = {};
  if (const int error = ::getnameinfo((*found)->ai_addr, (*found)->ai_addrlen, digits,
                                      sizeof digits, nullptr, 0, NI_NUMERICHOST);
      error != 0) {
    return fail(ErrorCode::bad_request, "'{}' has no address in digits: {}", host,
                ::gai_strerror(error));
  }
  return std::string(digits);
}

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
  if (::sodium_init() < 0) return fail(ErrorCode::internal, "libsodium cannot be used here");
  auto start = std::make_unique<comm::TcpStart>(shard, options.deadline_ms);
  if (auto listening = start->listen(options); !listening) {
    return tl::unexpected(listening.error());
  }
  return start;
}

}  // namespace sluice::kernels
