// Waiting for all groups but the last, and reading the last.
#pragma once

#include "cuda/async_copy.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void async_wait_too_few_kernel(const float* x, float* y) {  // x: [256], y: [32]
  SIAM_SHARED(float, stages, 256);
  for (unsigned stage = 0; stage < 2; ++stage) {
    const unsigned i = 128 * stage + 4 * threadIdx.x;
    cp_async_16(stages + i, x + i, 16);
    cp_async_commit();
  }
  cp_async_wait<bug ? 1 : 0>();
  __syncthreads();
  const float first = stages[4 * (31 - threadIdx.x)];
  const float last = stages[128 + 4 * (31 - threadIdx.x)];
  store(first + last, y + threadIdx.x);
  if (bug) cp_async_wait<0>();
}

SIAM_PLANTED(async_wait_too_few, "asynchronous copy in flight", "has not been waited for") {
  SIAM_LAUNCH((async_wait_too_few_kernel<bug>), 1, 32, 0, bench.stream, bench.input(256),
              bench.output(32));
}

}  // namespace siamcuda::planted
