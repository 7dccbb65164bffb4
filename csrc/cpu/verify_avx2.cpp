// The verification sinks for AVX2, FMA and F16C; see rows_avx512.cpp for why headers
// come first.
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
#pragma GCC target("avx2,fma,f16c")
#define SIAM_LEVEL_AVX2 1
#define SIAM_VECTOR_BYTES 32
namespace siamcuda::cpu::avx2 {
#include "cpu/verify.inl"
}  // namespace siamcuda::cpu::avx2
#pragma GCC pop_options
#endif
