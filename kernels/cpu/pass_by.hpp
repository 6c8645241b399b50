#pragma once
// How weights come that few rows read, and the probe of bandwidth with them.

namespace sluice::kernels::cpu {

/// Whether they are asked for past all caches but the first (prefetchnta). A step reads more than
/// the second holds, and so what carries tokens between steps finds its code there: on AMD steps
/// are no longer for it. On Intel's cores they are three times as long (docs/performance.md), it
/// seems because lines asked for so are never in the last-level cache, where the model may fit.
inline bool weights_pass_by() {
#if defined(__x86_64__)
  return !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace sluice::kernels::cpu
