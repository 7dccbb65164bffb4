// An index one past a shared array, where hardware would quietly reach the next array.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void shared_overrun_kernel(float* y) {  // y: [32]
  SIAM_SHARED(float, tile, 32);
  SIAM_SHARED(float, next, 32);
  tile[threadIdx.x] = 1.0f;
  next[threadIdx.x] = 2.0f;
  __syncthreads();
  const unsigned other = bug ? threadIdx.x + 1 : (threadIdx.x + 1) % 32;
  store(tile[other] + next[other % 32], y + threadIdx.x);
}

SIAM_PLANTED(shared_overrun, "out-of-bounds shared read", "'tile' (128 bytes)") {
  SIAM_LAUNCH((shared_overrun_kernel<bug>), 1, 32, 0, bench.stream, bench.output(32));
}

}  // namespace siamcuda::planted
