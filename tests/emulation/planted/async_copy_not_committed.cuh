// A wait covers groups, and a copy that was never committed is in none.
#pragma once

#include "cuda/async_copy.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void async_copy_not_committed_kernel(const float* x) {  // x: [128]
  SIAM_SHARED(float, tile, 128);
  cp_async_16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
  if (!bug) cp_async_commit();
  cp_async_wait<0>();
}

SIAM_PLANTED(async_copy_not_committed, "asynchronous copy in flight", "exited before it waited") {
  SIAM_LAUNCH((async_copy_not_committed_kernel<bug>), 1, 32, 0, bench.stream, bench.input(128));
}

}  // namespace siamcuda::planted
