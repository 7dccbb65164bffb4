// The verification sinks for baseline instructions: runs on any CPU.
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

#define SIAM_LEVEL_GENERIC 1
#define SIAM_VECTOR_BYTES 16
namespace siamcuda::cpu::generic {
#include "cpu/verify.inl"
}  // namespace siamcuda::cpu::generic
