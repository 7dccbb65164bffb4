// The row engine for AVX-512 F, BW, DQ and VL.
//
// Standard headers come first and outside of the target region: an inline function of theirs that
// was compiled for a newer CPU could be the copy that the linker keeps for everybody.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/plain_access.h"
#include "cpu/rows.h"
#include "math/labels.h"
#include "math/row_table.h"
#include "math/stats.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SIAM_LEVEL_AVX512 1
#define SIAM_VECTOR_BYTES 64
namespace siamcuda::cpu::avx512 {
using math::magnitude;
using math::multiply_add;
using math::sign;
// In this order: each uses what the one before it defines.
// clang-format off
#include "cpu/simd.inl"
#include "math/steps.inl"
#include "cpu/rows.inl"
// clang-format on
}  // namespace siamcuda::cpu::avx512
#pragma GCC pop_options
#endif
