#pragma once
// Who goes next when several tenants want more than there is: each gets the same share of tokens.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace sluice::engine {

/// Start-time fair queuing (Goyal, Vin and Cheng, 1996) over tokens. A request's tag says at which
/// point of a common clock its tenant, if all had the same share, would come to it: lower tags go
/// first. Who asks for little is served as if alone; a flood only waits for itself. Tags of one
/// tenant ascend, so its requests stay in their order.
class FairShare {
 public:
  using Tag = std::int64_t;

  /// The tag of a tenant's next request.
  Tag next(std::string_view tenant) const;

  /// The tenant's next request waits from now on; it is expected to take `tokens`.
  void enter(std::string_view tenant, std::uint64_t tokens);

  /// A request of this tag begins to be served.
  void begin(Tag tag);

  /// One that was entered with `expected` tokens took `actual`.
  void settle(std::string_view tenant, std::uint64_t expected, std::uint64_t actual);

  /// Tenants with something to remember.
  std::size_t tenants() const { return next_.size(); }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };

  Tag clock_ = 0;  ///< the highest tag served
  std::unordered_map<std::string, Tag, Hash, std::equal_to<>> next_;  ///< by tenant
  std::size_t sweep_at_ = 64;
};

}  // namespace sluice::engine
