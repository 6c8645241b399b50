// Feeds a node's links what other nodes may send: frames of any bytes, and frames that nearly fit
// the sessions that there are, on connections accepted and dialed, between ticks, losses and the
// node's own messages. As the endpoint does, what is no header is dropped, and a message that
// cannot be read ends its session. Whatever comes: every frame that leaves can be read, a session
// is up once and down once with a reason, messages come on sessions that are up, and a node that
// hears nothing more has none in the end.
//
// Input: operations, a byte each with operands; see `Attack::step`.

#include "transport/link.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "transport/node_protocol.hpp"

namespace {

using namespace sluice;
using namespace sluice::transport;

constexpr std::uint64_t ms = 1'000'000;

void demand(bool holds) {
  if (!holds) std::abort();
}

/// What is not there is zero.
struct Bytes {
  const std::uint8_t* at;
  const std::uint8_t* end;

  bool empty() const { return at == end; }
  std::uint8_t byte() { return at == end ? 0 : *at++; }
  std::string text(std::size_t count) {
    count = std::min(count, static_cast<std::size_t>(end - at));
    std::string out(reinterpret_cast<const char*>(at), count);
    at += count;
    return out;
  }
  /// A number that counts up or down from what would fit: mostly nothing.
  std::uint64_t off() {
    const auto drawn = byte();
    return drawn < 224 ? 0 : drawn < 240 ? drawn - 223U : 0 - std::uint64_t{256U - drawn};
  }
};

/// The other end of a connection, as far as a well-meaning node would know it.
struct Far {
  std::uint64_t incarnation = 1, session = 1;
  std::uint64_t said = 0, heard = 0;  ///< data frames
};

class Attack {
 public:
  Attack() : links_(config(), {"node", 7}) {
    for (std::uint32_t i = 0; i < 4; ++i) routes_.push_back("in " + std::to_string(i));
    for (std::uint32_t dial = 0; dial < 2; ++dial) {
      links_.dial(dial, now_ns_, out_);
      settle();
    }
  }

  void step(Bytes& in) {
    const auto what = in.byte();
    const auto& route = routes_[in.byte() % routes_.size()];
    switch (what % 9) {
      case 0: {  // any bytes: route, length, header, length, payload
        const auto header = in.text(in.byte());
        return receive(route, header, in.text(in.byte()));
      }
      case 1:
      case 2:
      case 3: {  // nearly right: route, kind, what is off, length, payload
        auto& far = far_[route];
        LinkHeader header;
        header.kind = static_cast<LinkKind>(1 + in.byte() % 5);
        header.incarnation = far.incarnation + in.off();
        header.session = far.session + in.off();
        if (header.kind == LinkKind::hello && !route.starts_with("dial")) {
          far = {header.incarnation, header.session, 0, 0};
        } else if (header.kind == LinkKind::data) {
          ++far.said;
        }
        header.sequence = far.said + in.off();
        header.ack = far.heard + in.off();
        return receive(route, encode(header), in.text(in.byte()));
      }
      case 4:
        return tick(in.byte() * 8 * ms);
      case 5: {
        for (int count = in.byte() % 8; count >= 0 && !up_.empty(); --count)
          links_.send(*up_.rbegin(), std::string(in.byte(), 'x'), now_ns_, out_);
        return settle();
      }
      case 6:
        links_.on_unreachable(route, now_ns_, out_);
        return settle();
      case 7:
        links_.reject(route, {}, {ErrorCode::unauthorized, "another's name", 0}, now_ns_, out_);
        return settle();
      default:
        links_.review(
            [&](const Route& of, const NodeIdentity&) -> std::optional<Error> {
              if (of != route) return std::nullopt;
              return Error{ErrorCode::unauthorized, "not listed any more", 0};
            },
            now_ns_, out_);
        return settle();
    }
  }

  /// Nobody speaks any more.
  void end() {
    for (int i = 0; i < 1000 && now_ns_ < quiet_ns_ + 2 * config().lost_ns; ++i) tick(50 * ms);
    demand(up_.empty());
    links_.end_all({ErrorCode::cancelled, "the node stops", 0}, now_ns_, out_);
    settle();
  }

 private:
  static LinkConfig config() {
    LinkConfig config;
    config.frames_max = 16;
    config.bytes_max = 4096;
    return config;
  }

  /// As PeerEndpoint does.
  void receive(const Route& route, const std::string& bytes, const std::string& payload) {
    quiet_ns_ = now_ns_;
    const auto header = decode_link_header(bytes);
    if (!header) return demand(!header.error().message.empty());
    demand(encode(*header) == bytes);
    const auto was_up = up_;
    const auto link = links_.on_frame(route, *header, payload, now_ns_, out_);
    demand(!link || (header->kind == LinkKind::data && was_up.contains(*link)));
    settle();
    if (!link) return;
    demand(up_.contains(*link));
    if (const auto message = decode(payload, NodeLimits{}); !message) {
      links_.end(*link, message.error(), now_ns_, out_);
      settle();
      demand(!up_.contains(*link));
    }
  }

  void tick(std::uint64_t ns) {
    now_ns_ += ns;
    demand(links_.tick(now_ns_, out_) > now_ns_);
    settle();
  }

  void settle() {
    const auto out = std::exchange(out_, {});
    for (const auto& connect : out.connects) {
      demand(connect.dial < 2);
      const auto place = 4 + connect.dial;
      routes_.resize(std::max(routes_.size(), std::size_t{place} + 1));
      far_.erase(routes_[place]);
      routes_[place] = connect.route;
    }
    for (const auto& frame : out.frames) {
      const auto header = decode_link_header(frame.header);
      demand(header && header->incarnation == 7);
      demand(std::ranges::find(routes_, frame.route) != routes_.end());
      const bool names = header->kind == LinkKind::hello || header->kind == LinkKind::welcome;
      demand(names ? frame.payload == "node"
                   : header->kind != LinkKind::bye || !frame.payload.empty());
      if (header->kind == LinkKind::hello) far_[frame.route].session = header->session;
      if (header->kind != LinkKind::bye) far_[frame.route].heard = header->sequence;
    }
    for (const auto& up : out.ups) {
      demand(up.link > last_up_);
      demand(!up.peer.name.empty() && up.peer.name.size() <= link_name_bytes_max);
      up_.insert(last_up_ = up.link);
    }
    for (const auto& down : out.downs)
      demand(up_.erase(down.link) == 1 && !down.why.message.empty());
    for (const auto& failure : out.failures)
      demand(failure.dial < 2 && !failure.why.message.empty());
    demand(links_.up_count() == up_.size());
  }

  Links links_;
  LinkOutput out_;
  std::uint64_t now_ns_ = 1000 * ms;
  std::uint64_t quiet_ns_ = 0;  // since when nothing came
  std::vector<Route> routes_;   // four accepted connections, two dialed ones
  std::map<Route, Far> far_;
  std::set<LinkId> up_;
  LinkId last_up_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes in{data, data + size};
  Attack attack;
  while (!in.empty()) attack.step(in);
  attack.end();
  return 0;
}
