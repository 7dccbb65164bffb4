// The verification sinks for AVX-512 F, BW, DQ and VL; see rows_avx512.cpp for why
// headers come first.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/batch.h"
#include "cpu/verify.h"
#include "math/formulas.h"
#include "math/tiles.h"
#include "math/verify.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SIAM_LEVEL_AVX512 1
#define SIAM_VECTOR_BYTES 64
namespace siamcuda::cpu::avx512 {
#include "cpu/verify.inl"
}  // namespace siamcuda::cpu::avx512
#pragma GCC pop_options
#endif
