#include "actors/channel_table.hpp"

#include <utility>

namespace sluice::actors {

void ChannelTable::up(transport::LinkId link, bool dialed) {
  const std::lock_guard lock(mutex_);
  links_.emplace(link, Session{dialed ? 1U : 2U, {}});
}

std::vector<std::pair<ChannelRef, ChannelEnd>> ChannelTable::down(transport::LinkId link) {
  const std::lock_guard lock(mutex_);
  links_.erase(link);
  std::vector<std::pair<ChannelRef, ChannelEnd>> lost;
  const auto first = ends_.lower_bound({link, 0});
  const auto last = ends_.lower_bound({link + 1, 0});
  for (auto at = first; at != last; ++at) lost.emplace_back(at->first, std::move(at->second));
  ends_.erase(first, last);
  return lost;
}

std::optional<ChannelRef> ChannelTable::open(transport::LinkId link, ChannelEnd end) {
  const std::lock_guard lock(mutex_);
  const auto found = links_.find(link);
  if (found == links_.end()) return std::nullopt;
  const ChannelRef channel{link, found->second.next};
  found->second.next += 2;
  ends_.emplace(channel, std::move(end));
  return channel;
}

void ChannelTable::opened(ChannelRef channel) {
  const std::lock_guard lock(mutex_);
  const auto found = links_.find(channel.link);
  if (found != links_.end()) found->second.opened.insert(channel.number);
}

bool ChannelTable::join(ChannelRef channel, ChannelEnd end) {
  const std::lock_guard lock(mutex_);
  const auto found = links_.find(channel.link);
  return found != links_.end() && found->second.opened.erase(channel.number) != 0 &&
         ends_.emplace(channel, std::move(end)).second;
}

ChannelEnd ChannelTable::find(ChannelRef channel) const {
  const std::lock_guard lock(mutex_);
  const auto found = ends_.find(channel);
  return found == ends_.end() ? ChannelEnd{} : found->second;
}

ChannelEnd ChannelTable::close(ChannelRef channel) {
  const std::lock_guard lock(mutex_);
  auto node = ends_.extract(channel);
  if (const auto found = links_.find(channel.link); found != links_.end())
    found->second.opened.erase(channel.number);  // nobody has joined it yet, and nobody will
  return node ? std::move(node.mapped()) : ChannelEnd{};
}

}  // namespace sluice::actors
