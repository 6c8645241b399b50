#pragma once
// What the host knows of the slots, and a batch written down as the device reads it.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/program.hpp"

namespace sluice::kernels::cuda {

/// Lists of biases and stop tokens that a slot has room for.
std::uint32_t list_capacity(const PoolShape& pool);

/// Bytes that the metadata of any batch fits.
std::size_t step_bytes_max(const PoolShape& pool);

/// The slots as the steps submitted so far leave them. What is on the device follows in order, so
/// this says at submission what will be true when the step runs. Misuse is an assertion.
class SlotMirror {
 public:
  SlotMirror() = default;
  explicit SlotMirror(const PoolShape& pool);

  void open(const SlotOpen& open);
  void grant(const BlockGrant& grant);
  void close(SlotRef ref);

  /// Asserts that the slot is open and has blocks for the segment.
  void check(const Segment& segment) const;

  /// How little its rows can be drawn from.
  Draw draw(SlotRef ref) const { return at(ref).draw; }

  /// Marks that the slot's logits are kept for a mask.
  void hold(SlotRef ref);

  /// Whether logits are kept for this tenant; they no longer are.
  bool release(SlotRef ref);

 private:
  struct Slot {
    SlotRef ref;
    bool open = false;
    bool held = false;
    Draw draw = Draw::whole;
    std::vector<std::uint32_t> blocks;
  };

  const Slot& at(SlotRef ref) const;

  PoolShape pool_;
  std::vector<Slot> slots_;
};

/// A step, ready to be copied to the device.
struct StepPlan {
  std::vector<std::byte> bytes;  ///< kept between steps, so that they allocate nothing
  StepCounts counts;
  std::uint32_t opens = 0;
  std::uint32_t grants = 0;
  std::uint32_t held = 0;
  std::vector<SlotRef> drawn;  ///< whose tokens the device draws, in its order
};

/// Writes a batch down and brings the mirror up to date.
void plan_batch(const Batch& batch, const PoolShape& pool, const DeviceState& state,
                SlotMirror& slots, StepPlan& plan);

/// Writes down the masks of rows whose logits are kept; others are left out.
void plan_masks(std::span<const Mask> masks, SlotMirror& slots, StepPlan& plan);

}  // namespace sluice::kernels::cuda
