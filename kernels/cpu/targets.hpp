#pragma once
// Include before any Highway header. Which instruction sets the CPU kernels are compiled for: those
// whose multiply-add rounds once (AVX2 and AVX-512 with FMA, NEON), so that every one gives the
// same bits, and Highway's portable target, where we call std::fma: right everywhere, and slow. SVE
// is left out because its vectors cannot be array elements.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
