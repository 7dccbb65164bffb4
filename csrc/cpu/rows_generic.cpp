// The row engine for baseline instructions: runs on any CPU the compiler targets.
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

#define SIAM_LEVEL_GENERIC 1
#define SIAM_VECTOR_BYTES 16
namespace siamcuda::cpu::generic {
using math::magnitude;
using math::multiply_add;
using math::sign;
// In this order: each uses what the one before it defines.
// clang-format off
#include "cpu/simd.inl"
#include "math/steps.inl"
#include "cpu/rows.inl"
// clang-format on
}  // namespace siamcuda::cpu::generic
