// Rounds of pieces over TCP, sealed wherever a connection leaves this host. All sockets at once and
// none of them blocking: a round cannot lock up whatever its size, and one wait serves all peers,
// the deadline and `abort`.

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "kernels/comm/collectives.hpp"
#include "kernels/comm/sockets.hpp"

namespace sluice::kernels::comm {
namespace {

// How often a rank looks at its sockets before it sleeps. A look is a system call of half a
// microsecond that lets others run; a sleep costs a wake of tens.
constexpr int looks_before_sleep = 100;

/// Before each piece: that both ranks are at the same round.
struct PieceHeader {
  std::uint64_t round = 0;
  std::uint64_t bytes = 0;
};

/// A header and a piece on their way, some of which has been moved.
class Transfer {
 public:
  /// With `seal` the way is through a copy of this transfer's own.
  explicit Transfer(Seal* seal = nullptr)
      : seal_(seal),
        header_(sizeof(PieceHeader) + (seal ? Seal::tag_bytes : 0)),
        sealed_(seal ? piece_bytes + Seal::tag_bytes : 0) {}

  /// A piece that is to go or to come. Empty: none.
  void begin(std::span<std::byte> piece) {
    piece_ = piece;
    body_ =
        seal_ && !piece.empty() ? std::span(sealed_).first(piece.size() + Seal::tag_bytes) : piece;
    done_ = 0;
    due_ = !piece.empty();
    written_ = false;
  }

  bool open() const { return due_ && done_ < header_.size() + body_.size(); }
  bool has_header() const { return done_ >= header_.size(); }
  std::size_t piece_size() const { return piece_.size(); }

  /// Before any of it is sent; once, however often the socket then takes nothing.
  void write(PieceHeader header) {
    if (std::exchange(written_, true)) return;
    const auto bytes = std::as_bytes(std::span(&header, 1));
    if (seal_) {
      seal_->close(bytes, header_);
      seal_->close(piece_, body_);
    } else {
      std::memcpy(header_.data(), bytes.data(), bytes.size());
    }
  }

  /// What is left of it on the wire.
  int rest(iovec (&parts)[2]) {
    const std::size_t of_header = std::min(done_, header_.size());
    const std::size_t of_body = done_ - of_header;
    parts[0] = {header_.data() + of_header, header_.size() - of_header};
    parts[1] = {body_.data() + of_body, body_.size() - of_body};
    return 2;
  }

  void moved(std::size_t bytes) { done_ += bytes; }

  /// Once it has arrived. None: it is not what the other rank sealed.
  std::optional<PieceHeader> read_header() {
    PieceHeader header;
    const auto bytes = std::as_writable_bytes(std::span(&header, 1));
    if (seal_) {
      if (!seal_->open(header_, bytes)) return std::nullopt;
    } else {
      std::memcpy(bytes.data(), header_.data(), bytes.size());
    }
    return header;
  }

  /// Once all has arrived.
  bool read_piece() { return !seal_ || seal_->open(body_, piece_); }

 private:
  Seal* seal_;
  std::vector<std::byte> header_;  ///< as on the wire
  std::vector<std::byte> sealed_;
  std::span<std::byte> piece_;
  std::span<std::byte> body_;  ///< the piece as on the wire
  std::size_t done_ = 0;
  bool due_ = false;
  bool written_ = false;
};

class TcpCommunicator final : public Collectives {
 public:
  TcpCommunicator(const Shard& shard, std::chrono::milliseconds deadline,
                  std::vector<Connection> connections, Descriptor wake)
      : Collectives(shard),
        place_(shard),
        deadline_(deadline),
        connections_(std::move(connections)),
        wake_(std::move(wake)),
        polled_(shard.size + 1) {
    for (Connection& connection : connections_) {
      auto& seals = connection.seals;
      out_.emplace_back(seals ? &seals->out : nullptr);
      in_.emplace_back(seals ? &seals->in : nullptr);
    }
  }

  std::string name() const override { return fmt::format("tcp, {} ranks", place_.size); }

  void abort(std::string_view why) override {
    {
      const std::lock_guard lock(mutex_);
      if (!aborted_.load(std::memory_order_relaxed)) why_ = why;
      aborted_.store(true, std::memory_order_release);
    }
    const std::uint64_t one = 1;
    // A counter that is full already wakes just as well.
    (void)!::write(wake_.get(), &one, sizeof one);
    hang_up();
  }

  std::optional<Error> failure() const override {
    const std::lock_guard lock(mutex_);
    if (failed_ || !aborted_.load(std::memory_order_relaxed)) return failed_;
    return aborted("a step");
  }

 protected:
  void begin(const char* operation) override {
    operation_ = operation;
    until_ = Clock::now() + deadline_;
  }

  Result<void> trade(const Round& round) override {
    if (failed_) return tl::unexpected(*failed_);  // only this thread writes it
    if (aborted_.load(std::memory_order_acquire)) return give_up({});
    ++number_;
    std::size_t open = 0;
    for (std::uint32_t r = 0; r < place_.size; ++r) {
      if (r == place_.rank) continue;
      const auto sent = round.send[r];
      // sendmsg takes it as writable, and does not write.
      out_[r].begin({const_cast<std::byte*>(sent.data()), sent.size()});
      in_[r].begin(round.receive[r]);
      open += static_cast<std::size_t>(out_[r].open()) + static_cast<std::size_t>(in_[r].open());
    }
    for (int looks = 0; open > 0;) {
      bool moved = false;
      // The next rank first, so that not all write to the same one.
      for (std::uint32_t i = 1; i < place_.size; ++i) {
        const std::uint32_t rank = (place_.rank + i) % place_.size;
        for (const bool sending : {true, false}) {
          Transfer& transfer = sending ? out_[rank] : in_[rank];
          if (!transfer.open()) continue;
          auto step = move(transfer, rank, sending);
          if (!step) return tl::unexpected(step.error());
          moved = moved || *step;
          if (!transfer.open()) --open;
        }
      }
      if (open == 0) break;
      if (moved) {
        looks = 0;
      } else if (looks++ < looks_before_sleep) {
        ::sched_yield();
      } else if (auto slept = sleep(); !slept) {
        return slept;
      }
      if (aborted_.load(std::memory_order_acquire)) return give_up({});
    }
    return {};
  }

 private:
  /// Moves what the socket takes or has. False: nothing now.
  Result<bool> move(Transfer& transfer, std::uint32_t rank, bool sending) {
    if (sending) transfer.write({number_, transfer.piece_size()});
    iovec parts[2];
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = static_cast<std::size_t>(transfer.rest(parts));
    const int fd = connections_[rank].socket.get();
    const ssize_t n = sending ? ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
                              : ::recvmsg(fd, &message, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n < 0) return left(rank, std::strerror(errno));
    if (n == 0) return left(rank, "its connection closed");
    const bool had_header = transfer.has_header();
    transfer.moved(static_cast<std::size_t>(n));
    if (sending) return true;
    if (!had_header && transfer.has_header()) {
      const auto header = transfer.read_header();
      if (!header) return altered(rank);
      if (header->round != number_ || header->bytes != transfer.piece_size()) {
        return give_up({ErrorCode::internal,
                        fmt::format("{}: round {} with {} bytes was due from rank {}, and round {} "
                                    "with {} came: the ranks do not run the same steps",
                                    place(), number_, transfer.piece_size(), rank, header->round,
                                    header->bytes),
                        0});
      }
    }
    if (!transfer.open() && !transfer.read_piece()) return altered(rank);
    return true;
  }

  /// Until a socket can move something, `abort`, or the deadline.
  Result<void> sleep() {
    std::uint32_t waited_for = place_.rank;
    for (std::uint32_t r = 0; r < place_.size; ++r) {
      short events = 0;
      if (out_[r].open()) events |= POLLOUT;
      if (in_[r].open()) events |= POLLIN;
      if (events != 0 && waited_for == place_.rank) waited_for = r;
      polled_[r] = {events == 0 ? -1 : connections_[r].socket.get(), events, 0};
    }
    polled_[place_.size] = {wake_.get(), POLLIN, 0};
    const int left_ms = remaining_ms(until_);
    if (left_ms == 0) {
      return give_up({ErrorCode::deadline,
                      fmt::format("{}: rank {} did not take part within {} ms: its process or its "
                                  "host stands still or cannot be reached; start the group again",
                                  place(), waited_for, deadline_.count()),
                      0});
    }
    ::poll(polled_.data(), polled_.size(), left_ms);
    return {};
  }

  std::string place() const { return place_in(operation_); }
  std::string place_in(const char* operation) const {
    return fmt::format("rank {} of {}: {}", place_.rank, place_.size, operation);
  }

  /// With the lock held.
  Error aborted(const char* operation) const {
    return {ErrorCode::unavailable, fmt::format("{}: aborted: {}", place_in(operation), why_), 0};
  }

  tl::unexpected<Error> left(std::uint32_t rank, const char* why) {
    return give_up({ErrorCode::unavailable,
                    fmt::format("{}: rank {} is gone ({}): its process ended, or it gave the group "
                                "up; start the group again",
                                place(), rank, why),
                    0});
  }

  tl::unexpected<Error> altered(std::uint32_t rank) {
    return give_up({ErrorCode::unavailable,
                    fmt::format("{}: what came from rank {} is not what it sealed: somebody on the "
                                "network between altered, repeated or withheld it; start the group "
                                "again",
                                place(), rank),
                    0});
  }

  /// The first failure stays, and makes the other ranks fail too.
  tl::unexpected<Error> give_up(Error error) {
    {
      const std::lock_guard lock(mutex_);
      if (aborted_.load(std::memory_order_acquire)) error = aborted(operation_);
      failed_ = std::move(error);
    }
    hang_up();
    return tl::unexpected(*failed_);
  }

  void hang_up() {
    for (const Connection& connection : connections_) {
      if (connection.socket) ::shutdown(connection.socket.get(), SHUT_RDWR);
    }
  }

  // The calling thread's, but for the descriptors, which stay open to the end.
  Shard place_;
  std::chrono::milliseconds deadline_;
  std::vector<Connection> connections_;
  Descriptor wake_;
  std::vector<Transfer> out_, in_;
  std::vector<pollfd> polled_;
  std::uint64_t number_ = 0;
  const char* operation_ = "";
  Clock::time_point until_;

  mutable std::mutex mutex_;
  std::optional<Error> failed_;  ///< written by the calling thread alone
  std::atomic<bool> aborted_{false};
  std::string why_;
};

}  // namespace

int remaining_ms(Clock::time_point until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

std::shared_ptr<Communicator> make_tcp_communicator(const Shard& shard,
                                                    std::chrono::milliseconds deadline,
                                                    std::vector<Connection> connections,
                                                    Descriptor wake) {
  return std::make_shared<TcpCommunicator>(shard, deadline, std::move(connections),
                                           std::move(wake));
}

}  // namespace sluice::kernels::comm
