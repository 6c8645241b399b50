#pragma once
// Include before any Highway header. Which instruction sets the CPU kernels are compiled for: those
// whose multiply-add rounds once (AVX2 and AVX-512 with FMA, NEON), so that every one gives the
// same bits, and Highway's portable target, where we call std::fma: right everywhere, and slow. SVE
// is left out because its vectors cannot be array elements.
//
// Sanitized, kernels compile for minutes, half of them for AVX-512 without byte dot products: what
// has a target with these goes without that one, of the same vectors. Builds that run no test of
// kernels (SLUICE_KERNELS_UNTESTED) have vectors of 256 bits at most.
#if defined(SLUICE_KERNELS_UNTESTED)
#define SLUICE_DISABLED_TARGETS (HWY_AVX3 | HWY_AVX3_DL)
#elif defined(SLUICE_SANITIZED) && defined(HWY_WANT_AVX3_DL)
#define SLUICE_DISABLED_TARGETS HWY_AVX3
#else
#define SLUICE_DISABLED_TARGETS 0
#endif
#define HWY_DISABLED_TARGETS                                             \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   SLUICE_DISABLED_TARGETS)
