// Rounds of pieces over TCP. All sockets at once and none of them blocking: a round cannot lock up
// whatever its size, and one wait serves all peers, the deadline and `abort`.

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

/// A header and a piece, some of which has been moved.
struct Transfer {
  PieceHeader header;
  std::span<std::byte> piece;
  std::size_t done = 0;
  bool due = false;

  std::size_t total() const { return sizeof header + piece.size(); }
  bool open() const { return due && done < total(); }

  /// What is left of it.
  int rest(iovec (&parts)[2]) {
    const std::size_t of_header = std::min(done, sizeof header);
    const std::size_t of_piece = done - of_header;
    parts[0] = {reinterpret_cast<std::byte*>(&header) + of_header, sizeof header - of_header};
    parts[1] = {piece.data() + of_piece, piece.size() - of_piece};
    return 2;
  }
};

class TcpCommunicator final : public Collectives {
 public:
  TcpCommunicator(const Shard& shard, std::chrono::milliseconds deadline,
                  std::vector<Descriptor> sockets, Descriptor wake)
      : Collectives(shard),
        place_(shard),
        deadline_(deadline),
        sockets_(std::move(sockets)),
        wake_(std::move(wake)),
        out_(shard.size),
        in_(shard.size),
        polled_(shard.size + 1) {}

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
      const auto sent = round.send[r];
      // sendmsg takes it as writable, and does not write.
      out_[r] = {{number_, sent.size()},
                 {const_cast<std::byte*>(sent.data()), sent.size()},
                 0,
                 r != place_.rank && !sent.empty()};
      in_[r] = {{}, round.receive[r], 0, r != place_.rank && !round.receive[r].empty()};
      open += static_cast<std::size_t>(out_[r].due) + static_cast<std::size_t>(in_[r].due);
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
    iovec parts[2];
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = static_cast<std::size_t>(transfer.rest(parts));
    const int fd = sockets_[rank].get();
    const ssize_t n = sending ? ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
                              : ::recvmsg(fd, &message, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n < 0) return left(rank, std::strerror(errno));
    if (n == 0) return left(rank, "its connection closed");
    transfer.done += static_cast<std::size_t>(n);
    if (!sending && transfer.done >= sizeof(PieceHeader) &&
        (transfer.header.round != number_ || transfer.header.bytes != transfer.piece.size())) {
      return give_up({ErrorCode::internal,
                      fmt::format("{}: round {} with {} bytes was due from rank {}, and round {} "
                                  "with {} came: the ranks do not run the same steps",
                                  place(), number_, transfer.piece.size(), rank,
                                  transfer.header.round, transfer.header.bytes),
                      0});
    }
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
      polled_[r] = {events == 0 ? -1 : sockets_[r].get(), events, 0};
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
    for (const Descriptor& socket : sockets_) {
      if (socket) ::shutdown(socket.get(), SHUT_RDWR);
    }
  }

  // The calling thread's, but for the descriptors, which stay open to the end.
  Shard place_;
  std::chrono::milliseconds deadline_;
  std::vector<Descriptor> sockets_;
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
                                                    std::vector<Descriptor> sockets,
                                                    Descriptor wake) {
  return std::make_shared<TcpCommunicator>(shard, deadline, std::move(sockets), std::move(wake));
}

}  // namespace sluice::kernels::comm
