#include "transport/link.hpp"

#include <algorithm>
#include <utility>

namespace sluice::transport {
namespace {

constexpr std::uint8_t version = 1;

void put_u64(std::string& out, std::uint64_t value) {
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

std::uint64_t get_u64(std::string_view bytes, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < 8; ++i)
    value |= std::uint64_t{static_cast<std::uint8_t>(bytes[at + i])} << (8 * i);
  return value;
}

bool is_name(std::string_view text) { return !text.empty() && text.size() <= link_name_bytes_max; }

}  // namespace

std::string encode(const LinkHeader& header) {
  std::string out = {'s', 'l', static_cast<char>(version), static_cast<char>(header.kind)};
  out.reserve(link_header_bytes);
  for (const auto value : {header.incarnation, header.session, header.sequence, header.ack})
    put_u64(out, value);
  return out;
}

Result<LinkHeader> decode_link_header(std::string_view bytes) {
  if (bytes.size() != link_header_bytes || bytes[0] != 's' || bytes[1] != 'l')
    return fail(ErrorCode::bad_request, "a link header is {} bytes that begin with 'sl'; got {}",
                link_header_bytes, bytes.size());
  if (bytes[2] != static_cast<char>(version))
    return fail(ErrorCode::unsupported,
                "the node speaks link version {}, this one {}: run the same release on both",
                static_cast<int>(bytes[2]), version);
  const auto kind = static_cast<std::uint8_t>(bytes[3]);
  if (kind < 1 || kind > 5)
    return fail(ErrorCode::bad_request, "a link header has kind {}; known are 1 to 5", kind);
  return LinkHeader{static_cast<LinkKind>(kind), get_u64(bytes, 4), get_u64(bytes, 12),
                    get_u64(bytes, 20), get_u64(bytes, 28)};
}

Links::Links(LinkConfig config, NodeIdentity self) : config_(config), self_(std::move(self)) {}

void Links::dial(std::uint32_t dial, std::uint64_t now_ns, LinkOutput& out) {
  Link link;
  link.dial = dial;
  link.pause_ns = config_.retry_min_ns;
  connect(std::move(link), now_ns, out);
}

/// A new attempt, with a new session number, on a new connection: what an old one still holds can
/// then not be mistaken for it.
void Links::connect(Link link, std::uint64_t now_ns, LinkOutput& out) {
  link.phase = Phase::greeting;
  link.session = ++last_session_;
  link.route = fmt::format("dial {} {}", *link.dial, link.session);
  link.sent = link.acked = link.received = link.received_at_ack = link.bytes_unacked = 0;
  link.sizes.clear();
  link.heard_ns = now_ns;
  out.connects.push_back({*link.dial, link.route});
  auto& kept = links_.insert_or_assign(link.route, std::move(link)).first->second;
  put(kept, LinkKind::hello, self_.name, now_ns, out);
}

void Links::put(Link& link, LinkKind kind, std::string payload, std::uint64_t now_ns,
                LinkOutput& out) {
  link.sent_ns = now_ns;
  link.received_at_ack = link.received;
  out.frames.push_back(
      {link.route,
       encode(LinkHeader{kind, self_.incarnation, link.session, link.sent, link.received}),
       std::move(payload)});
}

void Links::rise(Link& link, std::uint64_t now_ns, LinkOutput& out) {
  link.id = ++last_id_;
  link.phase = Phase::up;
  link.heard_ns = now_ns;
  link.pause_ns = config_.retry_min_ns;
  routes_.emplace(link.id, link.route);
  out.ups.push_back({link.id, link.peer, link.dial});
}

void Links::fall(Iterator at, Error why, bool tell, std::uint64_t now_ns, LinkOutput& out) {
  if (tell) put(at->second, LinkKind::bye, why.message, now_ns, out);
  Link link = std::move(at->second);
  links_.erase(at);
  if (link.phase == Phase::up) {
    routes_.erase(link.id);
    out.downs.push_back({link.id, link.peer.name, std::move(why)});
  } else if (link.dial) {
    out.failures.push_back({*link.dial, std::move(why)});
  }
  if (!link.dial) return;
  link.id = 0;
  link.phase = Phase::waiting;
  link.retry_ns = now_ns + link.pause_ns;
  link.pause_ns = std::min(link.pause_ns * 2, config_.retry_max_ns);
  links_.emplace(link.route, std::move(link));
}

/// Of one name there is one process: the newest. Notes it.
bool Links::newest(const NodeIdentity& peer) {
  const auto found = newest_.find(peer.name);
  if (found == newest_.end()) {
    if (newest_.size() >= link_nodes_max) return false;
    newest_.emplace(peer.name, peer.incarnation);
    return true;
  }
  if (peer.incarnation < found->second) return false;
  found->second = peer.incarnation;
  return true;
}

void Links::refuse(const Route& route, const LinkHeader& header, std::string why,
                   LinkOutput& out) const {
  out.frames.push_back(
      {route, encode(LinkHeader{LinkKind::bye, self_.incarnation, header.session, 0, 0}),
       std::move(why)});
}

/// A node that dials.
void Links::greet(const Route& route, const LinkHeader& header, std::string_view name,
                  std::uint64_t now_ns, LinkOutput& out) {
  if (!is_name(name))
    return refuse(route, header, "a node's name is 1 to 256 bytes", out);
  if (!newest({std::string(name), header.incarnation}))
    return refuse(route, header,
                  fmt::format("a newer process called {} is known here: start this one anew, or "
                              "give it a name of its own",
                              name),
                  out);
  for (auto at = links_.begin(); at != links_.end();) {
    const auto next = std::next(at);
    const Link& link = at->second;
    if (!link.dial && link.peer.name == name) {
      // Sessions of one process overtake each other only when it dialed again.
      if (link.peer.incarnation == header.incarnation && link.session >= header.session)
        return refuse(route, header, "a later session of this node is known here", out);
      fall(at, {ErrorCode::unavailable, fmt::format("node {} began a new session", name), 0},
           at->first != route, now_ns, out);
    }
    at = next;
  }
  if (const auto taken = links_.find(route); taken != links_.end())
    return refuse(route, header, "this connection has another node's session", out);
  Link link;
  link.route = route;
  link.peer = {std::string(name), header.incarnation};
  link.session = header.session;
  auto& kept = links_.emplace(route, std::move(link)).first->second;
  put(kept, LinkKind::welcome, self_.name, now_ns, out);
  rise(kept, now_ns, out);
}

/// The answer of a node that was dialed: nothing else comes first.
void Links::welcome(Iterator at, const LinkHeader& header, std::string_view name,
                    std::uint64_t now_ns, LinkOutput& out) {
  const auto give_up = [&](std::string why) {
    fall(at, {ErrorCode::unavailable, std::move(why), 0}, true, now_ns, out);
  };
  if (header.kind != LinkKind::welcome) return give_up("the node dialed spoke before its welcome");
  if (!is_name(name)) return give_up("the node dialed has no name of 1 to 256 bytes");
  auto& link = at->second;
  link.peer = {std::string(name), header.incarnation};
  if (!newest(link.peer))
    return give_up(
        fmt::format("an older process called {} answered than is known here", link.peer.name));
  rise(link, now_ns, out);
}

/// False when the peer acknowledges what was never sent.
bool Links::take_ack(Link& link, std::uint64_t ack) {
  if (ack > link.sent) return false;
  if (ack <= link.acked) return true;
  const auto count = static_cast<std::ptrdiff_t>(ack - link.acked);
  for (auto i = link.sizes.begin(); i != link.sizes.begin() + count; ++i) link.bytes_unacked -= *i;
  link.sizes.erase(link.sizes.begin(), link.sizes.begin() + count);
  link.acked = ack;
  return true;
}

bool Links::send(LinkId id, std::string payload, std::uint64_t now_ns, LinkOutput& out) {
  const auto route = routes_.find(id);
  if (route == routes_.end()) return false;
  const auto at = links_.find(route->second);
  auto& link = at->second;
  link.bytes_unacked += payload.size();
  link.sizes.push_back(payload.size());
  ++link.sent;
  if (link.sent - link.acked > config_.frames_max || link.bytes_unacked > config_.bytes_max) {
    fall(at,
         {ErrorCode::overloaded,
          fmt::format("node {} does not keep up: {} messages of {} bytes wait for it",
                      link.peer.name, link.sent - link.acked, link.bytes_unacked),
          0},
         true, now_ns, out);
    return false;
  }
  put(link, LinkKind::data, std::move(payload), now_ns, out);
  return true;
}

std::optional<LinkId> Links::on_frame(const Route& route, const LinkHeader& header,
                                      std::string_view payload, std::uint64_t now_ns,
                                      LinkOutput& out) {
  const auto at = links_.find(route);
  const bool known = at != links_.end() && at->second.phase != Phase::waiting &&
                     at->second.session == header.session &&
                     (at->second.phase == Phase::greeting ||
                      at->second.peer.incarnation == header.incarnation);
  if (header.kind == LinkKind::hello) {
    if (at == links_.end() || !at->second.dial) greet(route, header, payload, now_ns, out);
    return std::nullopt;
  }
  if (!known) {
    // What an ended session still says. Its sender learns that nobody listens.
    if (header.kind != LinkKind::bye && at == links_.end())
      refuse(route, header, "the session is over: dial again", out);
    return std::nullopt;
  }
  auto& link = at->second;
  if (header.kind == LinkKind::bye) {
    fall(at,
         {ErrorCode::unavailable,
          fmt::format("node {} ended the session: {}",
                      link.peer.name.empty() ? "dialed" : link.peer.name,
                      payload.substr(0, link_name_bytes_max)),
          0},
         false, now_ns, out);
    return std::nullopt;
  }
  if (link.phase == Phase::greeting) {
    welcome(at, header, payload, now_ns, out);
    return std::nullopt;
  }
  link.heard_ns = now_ns;
  const bool data = header.kind == LinkKind::data;
  if (!take_ack(link, header.ack) || header.sequence != link.received + (data ? 1 : 0)) {
    fall(at,
         {ErrorCode::unavailable,
          fmt::format("messages of node {} were lost on the way: got number {}, {} was due",
                      link.peer.name, header.sequence, link.received + (data ? 1 : 0)),
          0},
         true, now_ns, out);
    return std::nullopt;
  }
  if (!data) return std::nullopt;
  ++link.received;
  const auto id = link.id;
  // Before the peer runs into its bound; else the acknowledgement goes with what is sent anyway.
  if (link.received - link.received_at_ack >= std::max<std::uint64_t>(1, config_.frames_max / 8))
    put(link, LinkKind::beat, {}, now_ns, out);
  return id;
}

void Links::on_unreachable(const Route& route, std::uint64_t now_ns, LinkOutput& out) {
  const auto at = links_.find(route);
  if (at == links_.end() || at->second.phase == Phase::waiting) return;
  fall(at,
       {ErrorCode::unavailable,
        fmt::format("the connection to node {} is gone", at->second.peer.name), 0},
       false, now_ns, out);
}

void Links::reject(const Route& route, const LinkHeader& header, Error why, std::uint64_t now_ns,
                   LinkOutput& out) {
  const auto at = links_.find(route);
  if (at == links_.end()) return refuse(route, header, std::move(why.message), out);
  if (at->second.phase != Phase::waiting) fall(at, std::move(why), true, now_ns, out);
}

void Links::review(const Judge& judge, std::uint64_t now_ns, LinkOutput& out) {
  std::vector<std::pair<LinkId, Error>> over;
  for (const auto& [id, route] : routes_)
    if (auto why = judge(route, links_.at(route).peer)) over.emplace_back(id, std::move(*why));
  for (auto& [id, why] : over) end(id, std::move(why), now_ns, out);
}

void Links::end(LinkId id, Error why, std::uint64_t now_ns, LinkOutput& out) {
  const auto route = routes_.find(id);
  if (route != routes_.end()) fall(links_.find(route->second), std::move(why), true, now_ns, out);
}

void Links::end_all(const Error& why, std::uint64_t now_ns, LinkOutput& out) {
  while (!routes_.empty()) end(routes_.begin()->first, why, now_ns, out);
}

std::uint64_t Links::tick(std::uint64_t now_ns, LinkOutput& out) {
  std::vector<Route> due;
  for (const auto& [route, link] : links_) {
    const auto at = link.phase == Phase::waiting
                        ? link.retry_ns
                        : std::min(link.heard_ns + config_.lost_ns, link.sent_ns + config_.beat_ns);
    if (at <= now_ns) due.push_back(route);
  }
  for (const auto& route : due) {
    const auto at = links_.find(route);
    if (at == links_.end()) continue;
    auto& link = at->second;
    if (link.phase == Phase::waiting) {
      Link again = std::move(link);
      links_.erase(at);
      connect(std::move(again), now_ns, out);
    } else if (link.heard_ns + config_.lost_ns <= now_ns) {
      fall(at,
           {ErrorCode::unavailable,
            link.peer.name.empty()
                ? fmt::format("nobody answered within {} ms", config_.lost_ns / 1'000'000)
                : fmt::format("node {} was silent for {} ms", link.peer.name,
                              config_.lost_ns / 1'000'000),
            0},
           true, now_ns, out);
    } else if (link.phase == Phase::up) {
      put(link, LinkKind::beat, {}, now_ns, out);
    } else {
      link.sent_ns = now_ns;  // a greeting is said once: the connection is new
    }
  }
  std::uint64_t next = UINT64_MAX;
  for (const auto& [route, link] : links_)
    next = std::min(next, link.phase == Phase::waiting
                              ? link.retry_ns
                              : std::min(link.heard_ns + config_.lost_ns,
                                         link.sent_ns + config_.beat_ns));
  return next;
}

std::size_t Links::up_count() const { return routes_.size(); }

}  // namespace sluice::transport
