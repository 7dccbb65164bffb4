// Threads past the end return early, the rest waits for them at a barrier.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void barrier_after_exit_kernel(float* y, unsigned n) {  // y: [n]
  SIAM_SHARED(float, tile, 64);
  if (bug && threadIdx.x >= n) return;
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x < n) store<float>(tile[n - 1 - threadIdx.x], y + threadIdx.x);
}

SIAM_PLANTED(barrier_after_exit, "divergent barrier", "exited") {
  SIAM_LAUNCH((barrier_after_exit_kernel<bug>), 1, 64, 0, bench.stream, bench.output(50), 50u);
}

}  // namespace siamcuda::planted
