#pragma once

namespace sluice::kernels::cpu {

/// Whether the processor multiplies tiles, and adds up as tests' loop does.
bool has_tiles();

}  // namespace sluice::kernels::cpu
