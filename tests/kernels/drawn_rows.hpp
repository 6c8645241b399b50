#pragma once
// What the ways of drawing a row are compared over, and a group that tells which way was gone.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/communicator.hpp"
#include "kernels/cpu/state.hpp"

namespace sluice::kernels::test {

inline constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// A slot on a rank, with memory of its own.
struct SomeSlot {
  SomeSlot(std::uint32_t vocabulary, const SamplingParams& sampling, const std::vector<Token>& text,
           std::uint32_t prompt)
      : room(text.size() + 8), uses(vocabulary) {
    slot.ref = {3, 7};
    slot.tokens = room;
    slot.uses = uses;
    slot.sampling = sampling;
    slot.prompt_tokens = prompt;
    std::copy(text.begin(), text.end(), room.begin());
    slot.token_count = static_cast<std::uint32_t>(text.size());
    if (!slot.penalized()) return;
    for (std::size_t i = 0; i < text.size(); ++i) slot.count(text[i], i < prompt);
  }
  SomeSlot(const SomeSlot&) = delete;

  std::vector<Token> room;
  std::vector<std::uint32_t> uses;
  cpu::Slot slot;
};

/// Rows of logits and what to draw them by, chosen to hurt: equal logits across the borders of
/// ranks' parts, NaN, infinities, parts or rows without a token, flat rows.
class Rows {
 public:
  explicit Rows(unsigned seed) : random_(seed) {}

  bool chance(unsigned n) { return random_() % n == 0; }
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  float real(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random_);
  }

  std::vector<float> logits(std::uint32_t vocabulary, std::uint32_t ranks) {
    std::vector<float> row(vocabulary);
    std::normal_distribution<float> spread(0, chance(4) ? 0.05F : chance(2) ? 1.0F : 5.0F);
    for (float& x : row) x = spread(random_);
    if (chance(3)) {  // few values: ties everywhere
      for (float& x : row) x = std::round(x);
    }
    if (chance(4)) {  // the highest ones meet at a border of two parts
      const std::uint32_t border = shard_begin(vocabulary, 1 + below(ranks - 1), ranks);
      for (std::uint32_t t = border - std::min(border, 3U); t < border + 3 && t < vocabulary; ++t) {
        row[t] = 20.0F;
      }
    }
    if (chance(5)) {
      for (float& x : row) x = chance(3) ? not_a_number : x;
    }
    const auto empty = [&](std::uint32_t rank) {
      const auto begin = row.begin() + shard_begin(vocabulary, rank, ranks);
      const float nothing = chance(2) ? not_a_number : -infinity;
      std::fill_n(begin, shard_count(vocabulary, {rank, ranks}), nothing);
    };
    if (chance(8)) empty(below(ranks));
    if (chance(10)) row[below(vocabulary)] = infinity;
    if (chance(30)) std::fill(row.begin(), row.end(), not_a_number);
    if (chance(30)) std::fill(row.begin(), row.end(), -infinity);
    if (chance(30)) std::fill(row.begin(), row.end(), 0.0F);
    if (chance(30)) {  // that nobody has a token ranks know for different reasons
      for (std::uint32_t rank = 0; rank < ranks; ++rank) empty(rank);
    }
    return row;
  }

  SamplingParams params(std::uint32_t vocabulary) {
    SamplingParams s;
    s.temperature = chance(5) ? 0.0F : chance(4) ? real(1e-6F, 0.1F) : real(0.3F, 3.0F);
    if (chance(2)) s.top_k = 1 + below(chance(3) ? vocabulary + 10 : 60);
    if (chance(2)) s.top_p = chance(4) ? 1e-6F : chance(3) ? 0.999F : real(0.05F, 1.0F);
    if (chance(3)) s.min_p = chance(4) ? 1.0F : real(0.0F, 0.3F);
    if (chance(2)) s.repetition_penalty = real(0.5F, 2.0F);
    if (chance(3)) s.presence_penalty = real(-2.0F, 2.0F);
    if (chance(3)) s.frequency_penalty = real(-1.0F, 1.0F);
    if (chance(3)) {
      for (Token t = below(7); t < vocabulary; t += 1 + below(40)) {
        s.logit_bias.emplace_back(t, chance(4) ? -infinity : real(-5.0F, 5.0F));
      }
    }
    s.min_tokens = below(10);
    for (int i = 0; i < 20; ++i) s.stop_tokens.push_back(below(vocabulary + 5));
    s.seed = (std::uint64_t{random_()} << 32) | random_();
    if (chance(2)) s.logprobs = static_cast<std::int32_t>(below(21));
    return s;
  }

  std::vector<Token> text(std::uint32_t vocabulary) {
    std::vector<Token> tokens(1 + below(30));
    for (Token& t : tokens) t = below(vocabulary);
    return tokens;
  }

 private:
  std::mt19937 random_;
};

/// A rank's place in a group, that remembers what it gathers, and can leave at one.
class Counted final : public Communicator {
 public:
  explicit Counted(std::shared_ptr<Communicator> group) : group_(std::move(group)) {}

  /// At the nth gather from now on; 1: the next.
  void leave_at(int nth) { leave_in_ = nth; }

  /// Bytes of each gather since the last call, when none is under way.
  std::vector<std::size_t> gathers() { return std::exchange(gathers_, {}); }

  Shard shard() const override { return group_->shard(); }
  std::string name() const override { return group_->name(); }
  Result<void> all_reduce(std::span<float> values) override { return group_->all_reduce(values); }
  Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all) override {
    gathers_.push_back(own.size());
    if (--leave_in_ == 0) group_->abort("the test leaves");
    return group_->all_gather(own, all);
  }
  Result<void> broadcast(std::span<std::byte> values, std::uint32_t root) override {
    return group_->broadcast(values, root);
  }
  void abort(std::string_view why) override { group_->abort(why); }
  std::optional<Error> failure() const override { return group_->failure(); }

 private:
  std::shared_ptr<Communicator> group_;
  int leave_in_ = 0;
  std::vector<std::size_t> gathers_;
};

}  // namespace sluice::kernels::test
