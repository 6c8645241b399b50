#pragma once
// How weights come that few rows read, and the probe of bandwidth with them.

namespace sluice::kernels::cpu {

/// Whether they are asked for past all caches but the first. A step reads more than the second
/// holds, and so what carries tokens between steps finds its code there (AMD). On Intel's
/// cores what is asked for so is kept in no cache, and the last-level one, where the model may fit,
/// stays empty: SmolLM2 in Q4_0 makes 450 tokens/s where it made 180 (a Xeon, 300 MiB shared).
inline bool weights_pass_by() {
#if defined(__x86_64__)
  return !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace sluice::kernels::cpu
