// A row of 6 floats ends within a chunk of 16 bytes.
#pragma once

#include "cuda/async_copy.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(2, 1)
void partial_async_copy_kernel(const float* x, float* y) {  // x: [6], y: [2]
  SIAM_SHARED(float, tile, 8);
  const int first = 4 * static_cast<int>(threadIdx.x), left = 6 - first;
  const int valid = left >= 4 ? 16 : bug ? 4 * left : 0;
  cp_async_16(tile + first, x + first, valid);
  cp_async_commit();
  cp_async_wait<0>();
  store<float>(tile[first], y + threadIdx.x);
}

SIAM_PLANTED(partial_async_copy, "asynchronous copy size", "8 valid bytes of a copy of 16") {
  SIAM_LAUNCH((partial_async_copy_kernel<bug>), 1, 2, 0, bench.stream, bench.input(6),
              bench.output(2));
}

}  // namespace siamcuda::planted
