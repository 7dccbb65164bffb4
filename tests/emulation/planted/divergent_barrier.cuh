// Two branches each hold a barrier, so that half of the block waits at another one.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void divergent_barrier_kernel(float* y) {  // y: [64]
  float value = 0.0f;
  if (!bug || threadIdx.x < 32) {
    value = 1.0f;
    __syncthreads();
  } else {
    value = 2.0f;
    __syncthreads();
  }
  store(value, y + threadIdx.x);
}

SIAM_PLANTED(divergent_barrier, "divergent barrier", "waits at the one at") {
  SIAM_LAUNCH((divergent_barrier_kernel<bug>), 1, 64, 0, bench.stream, bench.output(64));
}

}  // namespace siamcuda::planted
