#pragma once
// How long steps take by what is in them, learned from those that ran: what a step may hold so that
// decoding streams do not stall, and when a prompt would be through. Pure.

#include <cstdint>

namespace sluice::engine {

class StepTime {
 public:
  explicit StepTime(std::uint32_t prompt_rows_min) : prompt_rows_min_(prompt_rows_min) {}

  /// Takes a step that ran: rows that decode, rows of prompts (or of what is recomputed), and the
  /// time that the device took, in ns. Older steps count less and less.
  void add(std::uint32_t decode_rows, std::uint32_t prompt_rows, std::uint64_t ns);

  /// Time of a step of so many decode rows alone, in ns; 0 while none has run.
  double decode_ns(std::uint32_t rows) const;

  /// Prompt rows that may join so many decode rows: as many as keep the step within `target_ns`,
  /// or, where decoding alone nearly takes that, within 8/5 of decoding alone. Without a target (0)
  /// within 8/5 or 8 ms more than decoding alone: on a fast device few rows cost nearly as much as
  /// many. `prompt_rows_min` always may, so that a prompt goes on however slow the device is, and
  /// `rows_max` where there is nothing to stall or nothing is known.
  std::uint32_t prompt_rows(std::uint32_t decode_rows, std::uint64_t target_ns,
                            std::uint32_t rows_max) const;

  /// Whether a step may hold decoding streams up for so many prompt rows more, because a prompt's
  /// first token comes of it: for 50 ms at most, and within an allowance of 400 ms, of which it
  /// takes its part if so. So a few short prompts are read at once, while of many in a row few are.
  bool pause(std::uint32_t rows);
  /// It is `now`, in ns: a tenth of the time that has passed is added to that allowance.
  void pass(std::uint64_t now);

  /// Time until `tokens` of prompts are computed in such steps, or in one that decoding streams may
  /// be held up for, in ns; 0 while nothing is known.
  double prompt_ns(std::uint64_t tokens, std::uint32_t decode_rows, std::uint64_t target_ns,
                   std::uint32_t rows_max) const;

 private:
  /// A line through what was seen, by least squares; points fade.
  struct Line {
    double weight = 0, x = 0, y = 0, xx = 0, xy = 0;
    void add(double at, double value);
    double operator()(double at) const;
  };

  static constexpr double longer_ns = 8e6;
  static constexpr double pause_max_ns = 50e6, allowance_max_ns = 400e6, allowance_share = 0.1;

  bool may_pause(std::uint32_t rows) const;
  double row_ns() const { return prompt_rows_ > 0 ? prompt_ns_ / prompt_rows_ : 0; }

  std::uint32_t prompt_rows_min_;
  double allowance_ns_ = allowance_max_ns;
  std::uint64_t now_ = 0;
  Line decode_;
  double prompt_rows_ = 0, prompt_ns_ = 0;  // sums that fade
};

}  // namespace sluice::engine
