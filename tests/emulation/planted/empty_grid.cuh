// A batch of no rows is launched as a grid of no blocks.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(32, 1) void empty_grid_kernel(float* y, unsigned n) {  // y: [n]
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) store(1.0f, y + i);
}

SIAM_PLANTED(empty_grid, "launch limit", "is empty") {
  const unsigned n = 0;
  if (!bug && n == 0) return;
  SIAM_LAUNCH((empty_grid_kernel), (n + 31) / 32, 32, 0, bench.stream, bench.output(n), n);
}

}  // namespace siamcuda::planted
