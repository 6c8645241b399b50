#pragma once
// Sessions between nodes: heartbeats, loss, back-off, epochs. Pure.
//
// A session delivers frames in order and without gaps until it ends, on both sides, with a reason.
// It never goes on after a loss: reconnecting begins a new one, and whoever used the old one hears
// that it is down, as of a local actor that died. Frames of an ended session are refused, so that a
// process that was stopped and goes on (a zombie) cannot be heard.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core.hpp"

namespace sluice::transport {

struct LinkConfig {
  std::uint64_t beat_ns = 200'000'000;        ///< silence after which a beat is sent
  std::uint64_t lost_ns = 1'000'000'000;      ///< silence after which the peer is lost
  std::uint64_t retry_min_ns = 50'000'000;    ///< pause before the first new attempt; doubles
  std::uint64_t retry_max_ns = 2'000'000'000; ///< up to here
  std::uint64_t frames_max = 65536;           ///< sent and not acknowledged; beyond, the peer is
  std::uint64_t bytes_max = 256U << 20;       ///< lost: it does not keep up
};

/// A process as its peers know it.
struct NodeIdentity {
  std::string name;               ///< configured, unique in the fleet; at most 256 bytes
  std::uint64_t incarnation = 0;  ///< grows with every start of a process of this name
};

enum class LinkKind : std::uint8_t { hello = 1, welcome, data, beat, bye };

/// The first of a frame's two parts; the second is the payload: the node's name (hello, welcome), a
/// reason in words (bye), a node message (data), or nothing.
struct LinkHeader {
  LinkKind kind = LinkKind::beat;
  std::uint64_t incarnation = 0;  ///< the sender's
  std::uint64_t session = 0;      ///< the dialer's number of it
  std::uint64_t sequence = 0;     ///< data: number from 1; else of the last data frame sent
  std::uint64_t ack = 0;          ///< data frames received

  bool operator==(const LinkHeader&) const = default;
};

inline constexpr std::size_t link_header_bytes = 36;
inline constexpr std::size_t link_name_bytes_max = 256;
inline constexpr std::size_t link_nodes_max = 4096;  ///< different names a node remembers

std::string encode(const LinkHeader& header);
/// `bad_request` for bytes that are no header, `unsupported` for another version's.
Result<LinkHeader> decode_link_header(std::string_view bytes);

/// A connection as the I/O thread names it: opaque. Those it dialed are named by `LinkConnect`.
using Route = std::string;

/// A session; numbers are never used again.
using LinkId = std::uint64_t;

/// To send: two parts on a route. A route that is gone is no error.
struct LinkFrame {
  Route route;
  std::string header;
  std::string payload;
};
/// Make a new connection to the dialed node, under this route; an earlier one is closed.
struct LinkConnect {
  std::uint32_t dial = 0;
  Route route;
};
struct LinkUp {
  LinkId link = 0;
  NodeIdentity peer;
  std::optional<std::uint32_t> dial;  ///< which of those dialed; none: the peer dialed
};
struct LinkDown {
  LinkId link = 0;
  std::string peer;
  Error why;
};
/// An attempt came to nothing: nobody there, or refused. The next one follows by itself.
struct LinkFailed {
  std::uint32_t dial = 0;
  Error why;
};

struct LinkOutput {
  std::vector<LinkFrame> frames;
  std::vector<LinkConnect> connects;
  std::vector<LinkUp> ups;
  std::vector<LinkDown> downs;
  std::vector<LinkFailed> failures;
};

/// All links of one node. One thread; time is an argument.
class Links {
 public:
  Links(LinkConfig config, NodeIdentity self);

  /// Keeps a session with a node from now on: `dial` is the caller's number of it.
  void dial(std::uint32_t dial, std::uint64_t now_ns, LinkOutput& out);

  /// Queues a message; false when the session is over.
  bool send(LinkId link, std::string payload, std::uint64_t now_ns, LinkOutput& out);

  /// Takes a frame; with a link the payload is a message to hand on.
  std::optional<LinkId> on_frame(const Route& route, const LinkHeader& header,
                                 std::string_view payload, std::uint64_t now_ns, LinkOutput& out);

  /// The connection is gone, as far as the I/O thread can tell.
  void on_unreachable(const Route& route, std::uint64_t now_ns, LinkOutput& out);

  /// Takes a frame that its sender may not send: the sender learns why, and a session that goes by
  /// this route ends.
  void reject(const Route& route, const LinkHeader& header, Error why, std::uint64_t now_ns,
              LinkOutput& out);

  /// Ends the sessions of which `judge`, given route and peer, says why they may not go on.
  using Judge = std::function<std::optional<Error>(const Route&, const NodeIdentity&)>;
  void review(const Judge& judge, std::uint64_t now_ns, LinkOutput& out);

  /// Ends a session, saying why: `why` reaches the peer in words.
  void end(LinkId link, Error why, std::uint64_t now_ns, LinkOutput& out);
  void end_all(const Error& why, std::uint64_t now_ns, LinkOutput& out);

  /// Beats, losses and new attempts that are due. Returns when it wants to be called again.
  std::uint64_t tick(std::uint64_t now_ns, LinkOutput& out);

  std::size_t up_count() const;

 private:
  enum class Phase : std::uint8_t { waiting, greeting, up };
  struct Link {
    LinkId id = 0;  ///< 0 until up
    Phase phase = Phase::waiting;
    std::optional<std::uint32_t> dial;
    Route route;
    NodeIdentity peer;
    std::uint64_t session = 0;
    std::uint64_t sent = 0, acked = 0, received = 0;
    std::uint64_t bytes_unacked = 0;
    std::vector<std::uint64_t> sizes;  ///< of the frames not acknowledged, a ring from acked + 1 on
    std::uint64_t sent_ns = 0, heard_ns = 0;
    std::uint64_t received_at_ack = 0;  ///< `received` as last told
    std::uint64_t retry_ns = 0;         ///< waiting: when to connect again
    std::uint64_t pause_ns = 0;         ///< the next pause
  };
  using Iterator = std::map<Route, Link>::iterator;

  void connect(Link link, std::uint64_t now_ns, LinkOutput& out);
  void put(Link& link, LinkKind kind, std::string payload, std::uint64_t now_ns, LinkOutput& out);
  void rise(Link& link, std::uint64_t now_ns, LinkOutput& out);
  bool newest(const NodeIdentity& peer);
  void fall(Iterator at, Error why, bool tell, std::uint64_t now_ns, LinkOutput& out);
  void greet(const Route& route, const LinkHeader& header, std::string_view name,
             std::uint64_t now_ns, LinkOutput& out);
  void welcome(Iterator at, const LinkHeader& header, std::string_view name, std::uint64_t now_ns,
               LinkOutput& out);
  void refuse(const Route& route, const LinkHeader& header, std::string why, LinkOutput& out) const;
  bool take_ack(Link& link, std::uint64_t ack);

  LinkConfig config_;
  NodeIdentity self_;
  std::map<Route, Link> links_;           ///< by present route; waiting ones by their last
  std::map<LinkId, Route> routes_;        ///< of sessions that are up
  std::map<std::string, std::uint64_t> newest_;  ///< by node name: the highest incarnation heard
  std::uint64_t last_id_ = 0;
  std::uint64_t last_session_ = 0;
};

}  // namespace sluice::transport
