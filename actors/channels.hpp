#pragma once
// What actors know of the way to other nodes. A channel joins two actors on two nodes: what one end
// sends, the other gets, in order; when the session between the nodes is lost, or one end closes,
// the other hears it once, as it hears of a local actor's end.

#include <cstdint>
#include <memory>
#include <string>

#include "actors/actors.hpp"
#include "transport/link.hpp"
#include "transport/node_protocol.hpp"

namespace sluice::actors {

using channel_atom = caf::atom_constant<caf::atom("channel")>;
using peer_atom = caf::atom_constant<caf::atom("peer")>;

/// A channel on one session with one node; never used again.
struct ChannelRef {
  transport::LinkId link = 0;
  std::uint32_t number = 0;

  auto operator<=>(const ChannelRef&) const = default;
};

/// One end of channels. After a channel's `lost` nothing of it comes.
using ChannelEnd =
    caf::typed_actor<caf::reacts_to<channel_atom, ChannelRef, transport::NodeMessage>,
                     caf::reacts_to<lost_atom, ChannelRef, Error>>;

/// Hears of sessions, and of what peers say outside of channels: offers, and channels that they
/// open. Offers what this node has; a batcher that serves is told to it.
using HostActor =
    caf::typed_actor<caf::reacts_to<peer_atom, transport::LinkUp>,
                     caf::reacts_to<lost_atom, transport::LinkDown>,
                     caf::reacts_to<peer_atom, transport::LinkId, transport::NodeMessage>,
                     caf::reacts_to<engine_atom, EngineFactsPtr, EngineActor>,
                     caf::reacts_to<engine_atom, EngineFactsPtr, Error>>;  ///< no longer

/// What one node offers; with none, it is gone.
struct PeerOffers {
  transport::LinkId link = 0;
  std::string node;
  std::vector<transport::Offer> offers;
};

/// Who wants to know what peers offer: the supervisor.
using OfferNews = caf::typed_actor<caf::reacts_to<peer_atom, PeerOffers>>;

/// Starts, watches and restarts the others.
using SupervisorActor = LoadNews::extend_with<OfferNews>::extend<
    caf::reacts_to<ready_atom, HostActor>,           ///< to be told of batchers that serve here
    caf::replies_to<stats_atom>::with<NamedValues>,  ///< of batchers here, and of peers
    caf::reacts_to<tick_atom>>;                      ///< its own: looks for an executor again

/// Implemented by the bridge over the peers' I/O thread, and by tests. Every method from any
/// thread; each may be called after the session was lost, and does nothing then.
class PeerBox {
 public:
  virtual ~PeerBox() = default;

  /// Opens a channel of the far node's `service`. With no session, `end` hears `lost` at once.
  virtual ChannelRef open(transport::LinkId link, transport::OpenChannel what, ChannelEnd end) = 0;

  /// Joins `end` to a channel that the peer opened.
  virtual void join(ChannelRef channel, ChannelEnd end) = 0;

  virtual void send(ChannelRef channel, const transport::NodeMessage& message) = 0;

  /// This end is done: it hears no more, the far end hears `lost`.
  virtual void close(ChannelRef channel) = 0;

  /// Outside of channels.
  virtual void tell(transport::LinkId link, const transport::NodeMessage& message) = 0;
};
using PeerBoxPtr = std::shared_ptr<PeerBox>;

}  // namespace sluice::actors

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::ChannelRef)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::PeerOffers)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::actors::HostActor)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::NodeMessage)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::LinkUp)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(sluice::transport::LinkDown)
