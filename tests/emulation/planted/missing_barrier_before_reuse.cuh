// A tile is filled again while other threads may still be reading what it held before.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void reuse_kernel(const float* x, float* y) {  // x: [4, 64], y: [64]
  SIAM_SHARED(float, tile, 64);
  float sum = 0.0f;
  for (unsigned step = 0; step < 4; ++step) {
    tile[threadIdx.x] = load<float>(x + 64 * step + threadIdx.x);
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if (!bug) __syncthreads();
  }
  store(sum, y + threadIdx.x);
}

SIAM_PLANTED(missing_barrier_before_reuse, "shared race", "no barrier since the") {
  SIAM_LAUNCH((reuse_kernel<bug>), 1, 64, 0, bench.stream, bench.input(256), bench.output(64));
}

}  // namespace siamcuda::planted
