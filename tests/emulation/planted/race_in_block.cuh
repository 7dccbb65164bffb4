// Threads of a block hand values on through global memory without a barrier.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void race_in_block_kernel(float* y) {  // y: [64]
  store(1.0f, y + threadIdx.x);
  if (!bug) __syncthreads();
  const float other = load<float>(y + (threadIdx.x + 32) % 64);
  __syncthreads();
  store(other, y + threadIdx.x);
}

SIAM_PLANTED(race_in_block, "global race", "of the same block") {
  SIAM_LAUNCH((race_in_block_kernel<bug>), 1, 64, 0, bench.stream, bench.state(64));
}

}  // namespace siamcuda::planted
