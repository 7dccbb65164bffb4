// Lanes of a warp exchange values through shared memory and rely on running in lockstep.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void missing_syncwarp_kernel(const float* x, float* y) {  // x, y: [32]
  SIAM_SHARED(float, row, 32);
  row[threadIdx.x] = load<float>(x + threadIdx.x);
  __syncwarp();
  const float other = row[threadIdx.x ^ 1];
  if (!bug) __syncwarp();
  row[threadIdx.x] = other;
  __syncwarp();
  store<float>(row[threadIdx.x], y + threadIdx.x);
}

SIAM_PLANTED(missing_syncwarp, "shared race", "'row'") {
  SIAM_LAUNCH((missing_syncwarp_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
