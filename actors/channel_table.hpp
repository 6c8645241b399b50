#pragma once
// Which actor is the end of which channel. Pure but for the handles; any thread.

#include <map>
#include <mutex>
#include <optional>
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

  /// False when the session is over.
  bool join(ChannelRef channel, ChannelEnd end);

  ChannelEnd find(ChannelRef channel) const;  ///< null: closed

  /// The end, for the last time; null when it was closed already.
  ChannelEnd close(ChannelRef channel);

 private:
  mutable std::mutex mutex_;
  std::map<transport::LinkId, std::uint32_t> links_;  ///< and the next number of its own
  std::map<ChannelRef, ChannelEnd> ends_;
};

}  // namespace sluice::actors
