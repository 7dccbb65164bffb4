// A barrier does not wait for asynchronous copies.
#pragma once

#include "cuda/async_copy.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void missing_async_wait_kernel(const float* x, float* y) {  // x: [128], y: [32]
  SIAM_SHARED(float, tile, 128);
  cp_async_16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
  cp_async_commit();
  if (!bug) cp_async_wait<0>();
  __syncthreads();
  store<float>(tile[4 * (31 - threadIdx.x)], y + threadIdx.x);
  if (bug) cp_async_wait<0>();
}

SIAM_PLANTED(missing_async_wait, "asynchronous copy in flight", "has not been waited for") {
  SIAM_LAUNCH((missing_async_wait_kernel<bug>), 1, 32, 0, bench.stream, bench.input(128),
              bench.output(32));
  bench.require_all_written();
}

}  // namespace siamcuda::planted
