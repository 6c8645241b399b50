#pragma once
// What a scheduler must know of the engine that it plans for.

#include <cstdint>
#include <optional>

#include "engine/prefix_cache.hpp"
#include "engine/step.hpp"

namespace sluice::engine {

struct SchedulerConfig {
  std::uint32_t slots = 64;            ///< sequences running at once, and never over `rows_max`
  std::uint32_t blocks = 0;            ///< KV pool
  std::uint32_t block_tokens = 16;
  std::uint32_t context_tokens = 0;    ///< longest sequence; a smaller pool limits it further
  std::uint32_t rows_max = 512;        ///< rows of a step: decode rows first, then prompt chunks
  /// What a step with prompt rows may take while others decode, in ns; 0: 8/5 of a step without
  /// or 8 ms more, and now and then as long as a short prompt takes (StepTime::pause).
  Nanoseconds itl_target = 0;
  std::uint32_t prompt_rows_min = 4;   ///< prompt rows of such a step, whatever it takes
  std::uint32_t queue_max = 1024;      ///< waiting sequences of a tenant; beyond: `overloaded`
  std::uint32_t steps_in_flight = 2;   ///< step n+1 is planned while step n runs
  /// What besides tokens decides a block's keys and values; none: no block is used twice.
  std::optional<BlockHash> prefix_root = std::nullopt;
  bool paths_equal = false;            ///< prompt and decode arithmetic agree to the bit
};

}  // namespace sluice::engine
