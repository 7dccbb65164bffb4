// A counter is raised atomically and read plainly by another thread, with no barrier between.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void plain_beside_atomic_kernel(float* y) {  // y: [64]
  SIAM_SHARED(unsigned, count, 1);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], 1);
  if (!bug) __syncthreads();
  store(static_cast<float>(count[0]), y + threadIdx.x);
}

SIAM_PLANTED(plain_beside_atomic, "shared race", "'count'") {
  float* y = bench.output(64);
  SIAM_LAUNCH((plain_beside_atomic_kernel<bug>), 1, 64, 0, bench.stream, y);
  bench.require_equal(y[17], 64.0f);
}

}  // namespace siamcuda::planted
