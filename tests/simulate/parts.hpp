#pragma once
// What every simulated process is made of beside its real actors: a device that checks what it is
// given, and a way out that checks what is said.

#include <algorithm>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/fake_device.hpp"
#include "tests/fakes/byte_facts.hpp"
#include "tests/simulate/collectives.hpp"
#include "tests/simulate/node.hpp"

namespace sluice::simulate {

constexpr const char* numerics = "00112233445566778899aabbccddeeff";

/// What a device came to.
struct Trouble {
  bool steps_failed = false;
  std::uint32_t steps_lost = 0;    ///< for the other ranks' sake
  std::uint32_t wrong_tokens = 0;  ///< computed on purpose
  std::string fault;               ///< what it found wrong
};

/// The checking device of the scheduler's simulation, behind the interface of a backend. A step
/// takes effect when it is complete.
class Device : public kernels::Backend {
 public:
  /// `group`: of a rank, which computes with the others.
  Device(const NodeShape& shape, Random& random, Trouble& trouble, Device*& place,
         kernels::Completion completion, std::shared_ptr<RankCommunicator> group = nullptr)
      : group_(std::move(group)),
        shape_(shape),
        random_(random),
        trouble_(trouble),
        place_(place),
        completion_(std::move(completion)),
        checked_(shape.scheduler, fakes::ByteTokenizer().size()) {
    info_.backend = "simulated";
    info_.paths_equal = shape.scheduler.paths_equal;
    place_ = this;
  }
  ~Device() override {
    if (place_ == this) place_ = nullptr;
  }

  const kernels::DeviceInfo& device() const override { return info_; }
  Result<kernels::Weight> load(const kernels::HostTensor&) override { return kernels::Weight{}; }
  Result<void> allocate(const kernels::PoolShape&) override { return {}; }
  Result<kernels::ProgramId> record(const kernels::StepProgram&) override {
    return kernels::ProgramId{};
  }
  void sample(kernels::Ticket ticket, std::vector<kernels::Mask> masks) override {
    masks_.push_back({ticket, std::move(masks)});
  }
  Result<double> read_bandwidth(std::size_t) override { return 0.0; }
  Result<void> read(kernels::ProgramId, kernels::Buffer, std::span<float>) override { return {}; }

  void submit(kernels::ProgramId, kernels::Ticket ticket, kernels::Batch batch) override {
    if (lost_) throw std::runtime_error("the device was lost on purpose");
    plans_.push_back({ticket, std::move(batch)});
  }

  /// Not yet, as long as the oldest step's masks, or the other ranks, have not come.
  void complete() {
    if (!met()) return;
    if (!plans_.front().batch.sample_now && masks_.empty()) return;
    met_ = false;
    const engine::StepPlan plan = std::move(plans_.front());
    plans_.pop_front();
    const bool fails = shape_.step_fails_one_in != 0 && random_.one_in(shape_.step_fails_one_in);
    trouble_.steps_failed = trouble_.steps_failed || fails;
    try {
      engine::StepMasks masks;
      if (!plan.batch.sample_now) {
        masks = std::move(masks_.front());
        masks_.pop_front();
      }
      auto result = checked_.run(plan, fails, {}, plan.batch.sample_now ? nullptr : &masks);
      spoil(result);
      completion_(std::move(result));
    } catch (const std::logic_error& error) {
      trouble_.fault = error.what();
    }
  }

  bool busy() const { return !plans_.empty(); }
  bool all_closed() const { return checked_.all_closed(); }
  void lose() { lost_ = true; }

 private:
  /// Whether all ranks have computed the oldest step; one that fails is answered here.
  bool met() {
    if (group_ == nullptr || met_) return true;
    const auto& plan = plans_.front();
    std::uint64_t digest = engine::test::mix(plan.ticket, plan.batch.sample_now);
    for (const auto& segment : plan.batch.segments)
      digest = engine::test::mix(digest, std::uint64_t{segment.slot.slot} << 32 | segment.position);
    try {
      const auto outcome = group_->meet(digest);
      if (!outcome) return false;
      met_ = outcome->has_value();
      if (met_) return true;
      ++trouble_.steps_lost;
      kernels::StepResult result;
      result.ticket = plan.ticket;
      result.failed = true;
      result.error = outcome->error();
      plans_.pop_front();
      completion_(std::move(result));
    } catch (const std::logic_error& error) {
      trouble_.fault = error.what();
    }
    return false;
  }

  /// One rank's processor errs, seldom: the others' tokens tell.
  void spoil(kernels::StepResult& result) {
    if (group_ == nullptr || shape_.rank_errs_one_in == 0 || !group_->may_err() ||
        !random_.one_in(shape_.rank_errs_one_in))
      return;
    for (auto& slot : result.slots) {
      if (slot.tokens.empty()) continue;
      slot.tokens.back() = slot.tokens.back() == 'a' ? 'b' : 'a';
      group_->err();
      ++trouble_.wrong_tokens;
      return;
    }
  }

  std::shared_ptr<RankCommunicator> group_;
  bool met_ = false;  // the ranks, in the oldest step
  const NodeShape& shape_;
  Random& random_;
  Trouble& trouble_;
  Device*& place_;  ///< where its process knows it
  kernels::Completion completion_;
  kernels::DeviceInfo info_;
  engine::test::FakeDevice checked_;
  std::deque<engine::StepPlan> plans_;
  std::deque<engine::StepMasks> masks_;  // of the plans that owe some, in order
  bool lost_ = false;
};

/// Hands frames to the wire, and checks what the node says of each stream: subscribers see every
/// token once and in order, one terminal and nothing behind it.
class Way : public actors::Outbox {
 public:
  /// `engines_go`: an engine may be lost, and not merely its device, which streams outlive.
  explicit Way(Wire wire, bool engines_go = false)
      : wire_(std::move(wire)), engines_go_(engines_go) {}

  void send(const transport::Peer& peer, std::shared_ptr<const std::string> frame) override {
    if (!dead && !wire_.send(peer, *frame)) lost.push_back(peer);
  }

  void publish(const transport::StreamId& stream,
               std::shared_ptr<const std::string> frame) override {
    if (dead) return;
    check(stream, *transport::decode(*frame, transport::Limits()));
    wire_.publish(stream, *frame);
  }

  actors::NamedValues stats() const override { return {}; }

  bool dead = false;
  std::vector<transport::Peer> lost;
  std::string fault;

 private:
  struct Published {
    std::uint64_t epoch = 0;
    std::map<std::uint32_t, std::uint32_t> next;  // of each choice
    bool over = false;
  };

  void check(const transport::StreamId& stream, const transport::Message& message) {
    const auto blame = [&](const char* what) {
      if (fault.empty()) fault = fmt::format("stream {}: {}", transport::to_hex(stream), what);
    };
    const auto* chunk = std::get_if<transport::Chunk>(&message);
    const auto* done = std::get_if<transport::Done>(&message);
    const std::uint64_t epoch = chunk  ? chunk->epoch
                                : done ? done->epoch
                                       : std::get<transport::Failed>(message).epoch;
    Published& known = published_[stream];
    if (epoch < known.epoch) return blame("an epoch that is over spoke");
    if (epoch > known.epoch) known = {epoch, {}, false};
    if (known.over) return blame("something follows the terminal");
    if (chunk == nullptr) {
      known.over = true;
      if (done == nullptr && !engines_go_ &&
          std::get<transport::Failed>(message).error.code == ErrorCode::unavailable)
        blame("a lost device ended it");
      for (const auto& [choice, next] : known.next)
        if (done != nullptr && done->tokens.at(choice) != next)
          blame("the terminal counts other tokens than were published");
      return;
    }
    const auto& part = chunk->part;
    const auto [next, is_first] = known.next.try_emplace(chunk->choice, part.first_index);
    if (!is_first && part.first_index != next->second) blame("tokens are not in order");
    next->second = part.first_index + static_cast<std::uint32_t>(part.tokens.size());
  }

  Wire wire_;
  bool engines_go_;
  std::map<transport::StreamId, Published> published_;
};

/// What an executor loads.
inline actors::LoadedEngine load_bytes(const NodeShape& shape,
                                       std::unique_ptr<kernels::Backend> device) {
  actors::LoadedEngine loaded;
  loaded.backend = std::move(device);
  auto facts = fakes::byte_facts();
  facts->numerics = numerics;
  facts->backend = "simulated";
  facts->scheduler = shape.scheduler;
  loaded.facts = std::move(facts);
  return loaded;
}

}  // namespace sluice::simulate
