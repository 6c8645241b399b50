#pragma once
// The time as an actor knows it: the system's, or the deterministic coordinator's in tests.

#include "engine/step.hpp"

namespace sluice::actors {

template <class Self>
engine::Nanoseconds now(Self self) {
  return static_cast<engine::Nanoseconds>(self->clock().now().time_since_epoch().count());
}

}  // namespace sluice::actors
