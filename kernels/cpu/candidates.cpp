#include "kernels/cpu/candidates.hpp"

#include <algorithm>
#include <cstring>

namespace sluice::kernels::cpu {
namespace {

/// Tokens of a rank's list: what log-probabilities ask for; one more than top-k keeps, for a list
/// must end below the k-th highest; all that there is room for where top-p decides, for what that
/// needs depends on the row.
std::size_t list_length(const SamplingParams& s, std::uint32_t vocabulary) {
  std::size_t length = static_cast<std::size_t>(std::max(s.logprobs, 0));
  if (s.temperature != 0.0F && has_threshold(s, vocabulary)) {
    length = std::max<std::size_t>(
        length, has_top_k(s, vocabulary) ? std::size_t{s.top_k} + 1 : list_tokens_max);
  }
  return std::min(length, list_tokens_max);
}

Tally read(const Tallies& tallies, std::uint32_t rank) {
  Tally tally;
  std::memcpy(&tally, tallies.of(rank), sizeof tally);
  SLUICE_ASSERT(tally.listed <= tallies.room(), "a rank's list is longer than it may be");
  return tally;
}

/// All ranks' lists in one, the best first.
void merge_lists(const Tallies& tallies, std::vector<Candidate>& all) {
  all.clear();
  for (std::uint32_t rank = 0; rank < tallies.ranks; ++rank) {
    const std::size_t count = read(tallies, rank).listed;
    if (count == 0) continue;
    const std::size_t before = all.size();
    all.resize(before + count);
    std::memcpy(all.data() + before, tallies.of(rank) + sizeof(Tally), count * sizeof(Candidate));
  }
  std::sort(all.begin(), all.end(), ahead);
}

/// z of one logit, `banned` where min-p rules it out.
float scaled(const SamplingParams& s, float logit, float peak) {
  const float z = (logit - peak) * inverse_temperature(s.temperature);
  return s.min_p > 0.0F && !(exp_f32(z) >= s.min_p) ? banned : z;
}

/// Highest z at which tokens may be missing in the lists, `banned` if none does.
float lists_end(const SamplingParams& s, const Tallies& tallies, float peak) {
  float end = banned;
  for (std::uint32_t rank = 0; rank < tallies.ranks; ++rank) {
    if (read(tallies, rank).listed < tallies.room()) continue;
    Candidate last;
    std::memcpy(&last, tallies.of(rank) + tallies.bytes - sizeof last, sizeof last);
    end = std::max(end, scaled(s, last.value, peak));
  }
  return end;
}

/// The winner of the race among tokens that top-k and top-p keep, with its logit; none: they may
/// keep tokens that are in no list. `best`: of all lists.
std::optional<Candidate> race_listed(const Slot& slot, const Tallies& tallies, float peak,
                                     std::uint32_t vocabulary, std::uint64_t kept_mass,
                                     std::span<const Candidate> best, std::vector<float>& known) {
  const SamplingParams& s = slot.sampling;
  const float end = lists_end(s, tallies, peak);
  known.clear();
  for (const Candidate& one : best) {
    const float z = scaled(s, one.value, peak);
    if (z > end) known.push_back(z);
  }
  const auto lowest = lowest_kept(s, vocabulary, known, end == banned, kept_mass);
  if (!lowest) return std::nullopt;
  Candidate winner, drawn;
  for (const Candidate& one : best) {
    const float z = scaled(s, one.value, peak);
    if (z < *lowest || z == banned || z + gumbel_highest < winner.value) continue;
    const Candidate runner{z + gumbel(noise_bits(s.seed, output_index(slot), one.token)),
                           one.token};
    if (!ahead(runner, winner)) continue;
    winner = runner;
    drawn = one;
  }
  return drawn;
}

}  // namespace

Peak higher(const Peak& a, const Peak& b) {
  return {ahead(b.best, a.best) ? b.best : a.best, a.numbers | b.numbers};
}

Peak find_peak(const Slot& slot, const TokenValues& raw, std::span<float> room,
               TokenValues& adjusted) {
  if (slot.error) return {};
  const Adjusted own = adjust(slot, raw, {}, room);
  adjusted = own.logits;
  if (own.best.value != banned) return {own.best, 1};
  const auto is_number = [](float x) { return x == x; };
  return {own.best, std::any_of(raw.values.begin(), raw.values.end(), is_number) ? 1U : 0U};
}

std::size_t tally_bytes(const Slot& slot, const Peak& peak, std::uint32_t vocabulary) {
  const SamplingParams& s = slot.sampling;
  if (slot.error || peak.best.value == banned) return 0;
  if (s.temperature == 0.0F && s.logprobs < 0) return 0;
  return sizeof(Tally) + list_length(s, vocabulary) * sizeof(Candidate);
}

void tally(const Slot& slot, const TokenValues& adjusted, const Candidate& own, const Peak& peak,
           std::uint32_t vocabulary, SampleScratch& scratch, const Tallies& out,
           std::uint32_t rank) {
  const SamplingParams& s = slot.sampling;
  const float top = peak.best.value;
  Tally tally;
  scratch.candidates.clear();
  if (own.value != banned) {
    if (s.logprobs >= 0) tally.total_mass = total_mass(adjusted, top);
    if (s.temperature != 0.0F && !has_top_k(s, vocabulary)) {
      const TokenValues z = scale(s, adjusted, top, scratch.z);
      if (s.top_p < 1.0F) {
        tally.kept_mass = total_mass(z, 0.0F);
      } else {
        tally.winner = race(z, own.token, s.seed, output_index(slot));
        if (tally.winner.value != banned) tally.winner_logit = adjusted.of(tally.winner.token);
      }
    }
    list_best(adjusted, out.room(), scratch.candidates);
    tally.listed = static_cast<std::uint32_t>(scratch.candidates.size());
  }
  std::memcpy(out.of(rank), &tally, sizeof tally);
  if (tally.listed == 0) return;  // where nothing was ever listed there is no memory to copy from
  std::memcpy(out.of(rank) + sizeof tally, scratch.candidates.data(),
              scratch.candidates.size() * sizeof(Candidate));
}

std::optional<SlotTokens> settle(Slot& slot, const Peak& peak, const Tallies& tallies,
                                 std::uint32_t vocabulary, SampleScratch& scratch) {
  if (slot.error) return SlotTokens{slot.ref, {}, {}, slot.error};
  if (peak.best.value == banned) return no_token(slot, peak.numbers != 0);
  const SamplingParams& s = slot.sampling;
  const float top = peak.best.value;
  if (tallies.bytes == 0) return append_drawn(slot, peak.best, {}, top, 0);
  std::vector<Candidate>& best = scratch.candidates;
  merge_lists(tallies, best);
  std::uint64_t kept_mass = 0, mass = 0;
  Candidate winner, drawn = peak.best;
  for (std::uint32_t rank = 0; rank < tallies.ranks; ++rank) {
    const Tally one = read(tallies, rank);
    kept_mass += one.kept_mass;
    mass += one.total_mass;
    if (!ahead(one.winner, winner)) continue;
    winner = one.winner;
    drawn = {one.winner_logit, one.winner.token};
  }
  if (s.temperature != 0.0F && has_threshold(s, vocabulary)) {
    const auto listed = race_listed(slot, tallies, top, vocabulary, kept_mass, best, scratch.known);
    if (!listed) return std::nullopt;
    drawn = *listed;
  }
  const auto asked = static_cast<std::size_t>(std::max(s.logprobs, 0));
  if (asked > tallies.room()) return std::nullopt;
  best.resize(std::min(best.size(), asked));
  return append_drawn(slot, drawn, best, top, mass);
}

}  // namespace sluice::kernels::cpu
