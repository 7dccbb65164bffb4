// A thread reads its neighbour's part of a tile before the barrier that follows the write.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void missing_barrier_kernel(const float* x, float* y) {  // x, y: [64]
  SIAM_SHARED(float, tile, 64);
  tile[threadIdx.x] = load<float>(x + threadIdx.x);
  if (!bug) __syncthreads();
  store<float>(tile[(threadIdx.x + 33) % 64], y + threadIdx.x);
}

// Depending on the order, the neighbour has not written at all yet.
SIAM_PLANTED(missing_barrier, "shared race|uninitialised shared read", "'tile'") {
  SIAM_LAUNCH((missing_barrier_kernel<bug>), 1, 64, 0, bench.stream, bench.input(64),
              bench.output(64));
  bench.require_all_written();
}

}  // namespace siamcuda::planted
