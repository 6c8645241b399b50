#pragma once
// The TCP connections behind a ROUTER or XPUB socket, of which libzmq says nothing: whose each is,
// and whether its peer takes what is sent. They are ended here, as libzmq has no call for that.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "transport/curve_keys.hpp"

namespace zmq {
class message_t;
}

namespace sluice::transport {

/// How long a peer has taken nothing although something waits for it, as one knows who looks now
/// and then. Pure.
class Stall {
 public:
  /// Looks within a limit. What is longer than two of their intervals counts as two: this process
  /// did not run meanwhile, and the peer is not to blame.
  static constexpr std::uint64_t looks = 8;

  /// `taken_bytes`: acknowledged since the connection was made. True once `limit_ns` have passed
  /// since the peer last took anything, or had all.
  bool look(std::uint64_t taken_bytes, bool waiting, std::uint64_t now_ns, std::uint64_t limit_ns);

  bool looked() const { return looked_ns_ != 0; }

 private:
  std::uint64_t taken_bytes_ = 0;
  std::uint64_t looked_ns_ = 0;
  std::uint64_t stalled_ns_ = 0;
  bool stalled_ = false;  ///< as of the last look
};

/// The connections that messages of a socket came from. One thread.
class Connections {
 public:
  void note(zmq::message_t& message, const CurveKey& key);

  /// Closes those whose key is not allowed; their peers see a lost connection, and are refused when
  /// they connect again. How many.
  std::size_t cut(const std::function<bool(const CurveKey&)>& allowed);

  bool empty() const { return by_descriptor_.empty(); }

  struct Stalled {
    std::string address;  ///< the peer's, HOST:PORT
    CurveKey key;
  };
  /// Looks at the next few connections, and ends those over TCP whose peer has taken nothing for
  /// `limit_ns` although something waits for it: at once, with what the kernel holds for it. True
  /// while the round is not over. A round is due every `limit_ns / Stall::looks`. Who is looked at
  /// is ended by no limit of the kernel's (TCP_USER_TIMEOUT) from then on.
  bool end_stalled(std::uint64_t now_ns, std::uint64_t limit_ns, std::vector<Stalled>& ended);

 private:
  struct Connection {
    std::uint64_t cookie = 0;  ///< Linux's name for a socket, never used again as descriptors are
    CurveKey key;
    Stall stall;
  };
  std::map<int, Connection> by_descriptor_;
  int next_ = 0;  ///< the descriptor where the round goes on
};

}  // namespace sluice::transport
