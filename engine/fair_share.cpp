#include "engine/fair_share.hpp"

#include <algorithm>

namespace sluice::engine {

FairShare::Tag FairShare::next(std::string_view tenant) const {
  const auto found = next_.find(tenant);
  return found == next_.end() ? clock_ : std::max(clock_, found->second);
}

void FairShare::enter(std::string_view tenant, std::uint64_t tokens) {
  if (next_.size() >= sweep_at_) {  // who is behind the clock is as if never seen
    std::erase_if(next_, [this](const auto& entry) { return entry.second <= clock_; });
    sweep_at_ = std::max<std::size_t>(64, 2 * next_.size());
  }
  const Tag tag = next(tenant);
  next_[std::string(tenant)] = tag + static_cast<Tag>(tokens);
}

void FairShare::begin(Tag tag) { clock_ = std::max(clock_, tag); }

void FairShare::settle(std::string_view tenant, std::uint64_t expected, std::uint64_t actual) {
  const auto found = next_.find(tenant);
  if (found == next_.end()) return;
  found->second += static_cast<Tag>(actual) - static_cast<Tag>(expected);
}

}  // namespace sluice::engine
