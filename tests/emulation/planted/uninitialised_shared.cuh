// A reduction over a tile of which the tail was never filled.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void uninitialised_shared_kernel(const float* x, float* y, unsigned n) {
  SIAM_SHARED(float, tile, 64);
  if (threadIdx.x < n) {
    tile[threadIdx.x] = load<float>(x + threadIdx.x);  // x: [n]
  } else if (!bug) {
    tile[threadIdx.x] = 0.0f;
  }
  __syncthreads();
  for (unsigned half = 32; half > 0; half /= 2) {
    if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) store<float>(tile[0], y);  // y: [1]
}

SIAM_PLANTED(uninitialised_shared, "uninitialised shared read", "'tile'") {
  float* y = bench.output(1);
  SIAM_LAUNCH((uninitialised_shared_kernel<bug>), 1, 64, 0, bench.stream, bench.input(50), y, 50u);
  bench.require_equal(y[0], 50.0f);
}

}  // namespace siamcuda::planted
