#include "tests/simulate/collectives.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace sluice::simulate {
namespace {

std::pair<std::size_t, std::size_t> pair_of(std::size_t a, std::size_t b) {
  return {std::min(a, b), std::max(a, b)};
}

}  // namespace

RankCommunicator::RankCommunicator(Collectives& network, std::shared_ptr<Meeting> meeting,
                                   std::shared_ptr<Meeting::Presence> presence,
                                   kernels::Shard shard, std::uint64_t deadline_ns)
    : network_(network),
      meeting_(std::move(meeting)),
      presence_(std::move(presence)),
      shard_(shard),
      deadline_ns_(deadline_ns) {}

void RankCommunicator::abort(std::string_view why) {
  if (presence_->aborted.empty()) presence_->aborted = why;
}

std::optional<Error> RankCommunicator::failure() const {
  if (failed_ || presence_->aborted.empty()) return failed_;
  return Error{ErrorCode::unavailable, presence_->aborted, 0};
}

Result<void> RankCommunicator::give_up(ErrorCode code, std::uint32_t rank, const std::string& why) {
  failed_ =
      Error{code, fmt::format("rank {}: all_reduce with rank {}: {}", shard_.rank, rank, why), 0};
  abort(failed_->message);  // the others' fail too
  return tl::unexpected(*failed_);
}

std::optional<Result<void>> RankCommunicator::meet(std::uint64_t plan) {
  if (failed_) return tl::unexpected(*failed_);
  if (!presence_->aborted.empty())
    return give_up(ErrorCode::unavailable, shard_.rank, presence_->aborted);
  auto& me = meeting_->members[shard_.rank];
  if (!since_ns_) {
    since_ns_ = network_.now_ns_;
    me.said.push_back(plan);
  }
  bool all = true;
  for (std::uint32_t rank = 0; rank < shard_.size; ++rank) {
    if (rank == shard_.rank) continue;
    const auto& other = meeting_->members[rank];
    const auto pair = pair_of(me.process, other.process);
    if (meeting_->broken.contains(pair))
      return give_up(ErrorCode::unavailable, rank, "the connection is broken");
    const bool passes =
        !meeting_->silent.contains(pair) && network_.passes_(other.process, me.process);
    if (passes) me.arrived[rank] = other.said.size();
    if (me.arrived[rank] > met_) {
      if (other.said[met_] != plan) throw std::logic_error("the ranks of a group run other plans");
      continue;
    }
    all = false;
    const auto presence = other.presence.lock();
    if (passes && (presence == nullptr || !presence->aborted.empty()))
      return give_up(ErrorCode::unavailable, rank, "it is gone");
    if (network_.now_ns_ - *since_ns_ >= deadline_ns_)
      return give_up(ErrorCode::deadline, rank, "it did not come in time");
  }
  if (!all) return std::nullopt;
  since_ns_.reset();
  ++met_;
  return Result<void>();
}

class Collectives::Start : public kernels::GroupStart {
 public:
  Start(Collectives& network, kernels::Shard shard, std::uint64_t deadline_ns, std::string address)
      : network_(network), shard_(shard), deadline_ns_(deadline_ns), name_(std::move(address)) {
    address_.resize(name_.size());
    std::memcpy(address_.data(), name_.data(), name_.size());
  }

  kernels::Shard shard() const override { return shard_; }
  const std::vector<std::byte>& address() const override { return address_; }
  void cancel() override { presence_->aborted = "cancelled"; }
  const std::shared_ptr<Meeting::Presence>& presence() const { return presence_; }

  /// At once: who stands still is found out in the first step.
  Result<std::shared_ptr<kernels::Communicator>> connect(
      std::span<const std::vector<std::byte>> addresses, std::uint32_t) override {
    std::vector<std::string> names;
    for (const auto& each : addresses)
      names.emplace_back(reinterpret_cast<const char*>(each.data()), each.size());
    if (names.size() != shard_.size || names[shard_.rank] != name_)
      return fail(ErrorCode::bad_request, "the addresses are another group's");
    const auto self = network_.addresses_.at(name_).process;
    auto meeting = std::make_shared<Meeting>();
    for (std::uint32_t rank = 0; rank < shard_.size; ++rank) {
      const auto found = network_.addresses_.find(names[rank]);
      if (found == network_.addresses_.end() ||
          found->second.shard != kernels::Shard{rank, shard_.size})
        return fail(ErrorCode::bad_request, "the addresses are another group's");
      const auto& [process, shard, presence] = found->second;
      if (!network_.passes_(self, process) || !network_.passes_(process, self))
        return fail(ErrorCode::deadline, "rank {} did not come", rank);
      const auto there = presence.lock();
      if (there == nullptr || !there->aborted.empty())
        return fail(ErrorCode::unavailable, "rank {} left", rank);
      meeting->members.push_back({process, presence, {}, std::vector<std::size_t>(shard_.size)});
    }
    auto& known = network_.meetings_[names];
    if (const auto begun = known.lock())
      meeting = begun;
    else
      known = meeting;
    return std::make_shared<RankCommunicator>(network_, std::move(meeting), presence_, shard_,
                                              deadline_ns_);
  }

 private:
  Collectives& network_;
  kernels::Shard shard_;
  std::uint64_t deadline_ns_;
  std::string name_;
  std::vector<std::byte> address_;
  std::shared_ptr<Meeting::Presence> presence_ = std::make_shared<Meeting::Presence>();
};

Result<std::unique_ptr<kernels::GroupStart>> Collectives::prepare(
    std::size_t process, const kernels::Shard& shard, const kernels::CommunicatorOptions& options) {
  auto start = std::make_unique<Start>(*this, shard, options.deadline_ms * ms,
                                       fmt::format("start {}", addresses_.size()));
  const auto& own = start->address();
  addresses_.emplace(std::string(reinterpret_cast<const char*>(own.data()), own.size()),
                     Address{process, shard, start->presence()});
  return start;
}

bool Collectives::harm(std::size_t a, std::size_t b, bool silently) {
  bool any = false;
  for (const auto& [names, known] : meetings_) {
    const auto meeting = known.lock();
    if (meeting == nullptr) continue;
    const auto has = [&](std::size_t process) {
      return std::ranges::any_of(meeting->members,
                                 [&](const auto& member) { return member.process == process; });
    };
    if (!has(a) || !has(b)) continue;
    (silently ? meeting->silent : meeting->broken).insert(pair_of(a, b));
    any = true;
  }
  return any;
}

}  // namespace sluice::simulate
