// The FMA peak: fused multiply-adds that stay in registers, in as many chains as hide their
// latency.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {

inline volatile float sink;  // keeps results that nobody reads

constexpr int64_t kFmaLoops = 2000000;

#if defined(__x86_64__)
__attribute__((target("avx512f"))) inline double fma_avx512() {
  __m512 a[16];
  for (int k = 0; k < 16; ++k) a[k] = _mm512_set1_ps(0.5f + k);
  const __m512 m = _mm512_set1_ps(0.9f), b = _mm512_set1_ps(0.1f);
  for (int64_t i = 0; i < kFmaLoops; ++i) {
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) a[k] = _mm512_fmadd_ps(a[k], m, b);
  }
  __m512 all = a[0];
  for (int k = 1; k < 16; ++k) all = _mm512_add_ps(all, a[k]);
  float lanes[16];
  _mm512_storeu_ps(lanes, all);
  sink = lanes[3];
  return 2.0 * 16 * 16 * kFmaLoops;
}

__attribute__((target("avx2,fma"))) inline double fma_avx2() {
  __m256 a[12];
  for (int k = 0; k < 12; ++k) a[k] = _mm256_set1_ps(0.5f + k);
  const __m256 m = _mm256_set1_ps(0.9f), b = _mm256_set1_ps(0.1f);
  for (int64_t i = 0; i < kFmaLoops; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < 12; ++k) a[k] = _mm256_fmadd_ps(a[k], m, b);
  }
  __m256 all = a[0];
  for (int k = 1; k < 12; ++k) all = _mm256_add_ps(all, a[k]);
  float lanes[8];
  _mm256_storeu_ps(lanes, all);
  sink = lanes[3];
  return 2.0 * 8 * 12 * kFmaLoops;
}
#endif

// Fused where the baseline has such an instruction, whatever the rest of the program is told.
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("fp-contract=fast")))
#endif
inline double fma_baseline() {
  typedef float Four __attribute__((vector_size(16)));
  Four a[12];
  for (int k = 0; k < 12; ++k) a[k] = Four{} + (0.5f + k);
  for (int64_t i = 0; i < kFmaLoops; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < 12; ++k) a[k] = a[k] * 0.9f + 0.1f;
  }
  Four all{};
  for (const Four& s : a) all += s;
  sink = all[0] + all[1];
  return 2.0 * 4 * 12 * kFmaLoops;
}

// A few milliseconds of them with the widest vectors that the CPU has; returns the operations done.
inline double fma_work() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return fma_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_avx2();
#endif
  return fma_baseline();
}

}  // namespace bench
