#pragma once
// Which actor is the end of which channel. Pure but for the handles; any thread.

#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "actors/channels.hpp"

namespace sluice::actors {

class ChannelTable {
 public:
  /// A session begins. Each side numbers the channels it opens: who dialed the odd ones.
  void up(transport::LinkId link, bool dialed);

  /// Its ends, to be told.
  std::vector<std::pair<ChannelRef, ChannelEnd>> down(transport::LinkId link);

  /// A number for a channel to open; none when the session is over.
  std::optional<ChannelRef> open(transport::LinkId link, ChannelEnd end);

  /// The peer opened it; somebody here joins in a moment, or nobody does.
  void opened(ChannelRef channel);

  /// False when the session is over, or the peer has closed the channel meanwhile.
  bool join(ChannelRef channel, ChannelEnd end);

  ChannelEnd find(ChannelRef channel) const;  ///< null: closed

  /// The end, for the last time; null when it was closed already.
  ChannelEnd close(ChannelRef channel);

 private:
  mutable std::mutex mutex_;
  struct Session {
    std::uint32_t next = 0;          ///< number of a channel that this side opens
    std::set<std::uint32_t> opened;  ///< by the peer, and not joined yet
  };
  std::map<transport::LinkId, Session> links_;
  std::map<ChannelRef, ChannelEnd> ends_;
};

}  // namespace sluice::actors
