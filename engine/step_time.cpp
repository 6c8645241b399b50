#include "engine/step_time.hpp"

#include <algorithm>

namespace sluice::engine {
namespace {

// What is left of a point's weight after each further one.
constexpr double fade = 0.95;

}  // namespace

void StepTime::Line::add(double at, double value) {
  weight = weight * fade + 1;
  x = x * fade + at;
  y = y * fade + value;
  xx = xx * fade + at * at;
  xy = xy * fade + at * value;
}

double StepTime::Line::operator()(double at) const {
  if (weight == 0) return 0;
  const double spread = weight * xx - x * x;
  // With one row count seen, or a line that falls: what it took on average.
  const double slope = spread > 1e-6 * xx ? std::max(0.0, (weight * xy - x * y) / spread) : 0.0;
  return std::max(0.0, y / weight + slope * (at - x / weight));
}

void StepTime::add(std::uint32_t decode_rows, std::uint32_t prompt_rows, std::uint64_t ns) {
  const auto time = static_cast<double>(ns);
  if (prompt_rows == 0) {
    if (decode_rows > 0) decode_.add(decode_rows, time);
    return;
  }
  prompt_rows_ = prompt_rows_ * fade + prompt_rows;
  prompt_ns_ = prompt_ns_ * fade +
               std::max(0.0, time - (decode_rows > 0 ? decode_(decode_rows) : 0.0));
}

double StepTime::decode_ns(std::uint32_t rows) const { return rows > 0 ? decode_(rows) : 0.0; }

std::uint32_t StepTime::prompt_rows(std::uint32_t decode_rows, std::uint64_t target_ns,
                                    std::uint32_t rows_max) const {
  const double decode = decode_ns(decode_rows);
  if (decode == 0 || prompt_ns_ == 0) return rows_max;
  const auto target = static_cast<double>(target_ns);
  double whole = target > 1.2 * decode ? target : 1.6 * decode;
  if (target_ns == 0) whole = std::max(whole, decode + longer_ns);
  const double rows = (whole - decode) / row_ns();
  return static_cast<std::uint32_t>(
      std::min<double>(rows_max, std::max<double>(rows, prompt_rows_min_)));
}

bool StepTime::may_pause(std::uint32_t rows) const {
  return rows * row_ns() <= std::min(pause_max_ns, allowance_ns_);
}

bool StepTime::pause(std::uint32_t rows) {
  if (!may_pause(rows)) return false;
  allowance_ns_ -= rows * row_ns();
  return true;
}

void StepTime::pass(std::uint64_t now) {
  if (now <= now_) return;
  const auto passed = static_cast<double>(now - now_);
  allowance_ns_ = std::min(allowance_max_ns, allowance_ns_ + allowance_share * passed);
  now_ = now;
}

double StepTime::prompt_ns(std::uint64_t tokens, std::uint32_t decode_rows,
                           std::uint64_t target_ns, std::uint32_t rows_max) const {
  if (prompt_rows_ == 0) return 0;
  const bool at_once = target_ns == 0 && tokens <= rows_max &&
                       may_pause(static_cast<std::uint32_t>(tokens));
  const double rows = std::max(1U, prompt_rows(decode_rows, target_ns, rows_max));
  const double steps = at_once ? 1.0 : static_cast<double>(tokens) / rows;
  return static_cast<double>(tokens) * row_ns() + steps * decode_ns(decode_rows);
}

}  // namespace sluice::engine
