// Groups of eight lanes work on rows of their own; one mask names only half of its group.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void partial_syncwarp_kernel(const float* x, float* y) {  // x, y: [32]
  SIAM_SHARED(float, rows, 32);
  const unsigned group = threadIdx.x / 8 * 8;
  const unsigned width = bug ? 4 : 8;
  const unsigned mask = ((1u << width) - 1u) << (threadIdx.x / width * width);
  rows[threadIdx.x] = load<float>(x + threadIdx.x);
  __syncwarp(mask);
  store<float>(rows[group + (threadIdx.x + 4) % 8], y + threadIdx.x);
}

SIAM_PLANTED(partial_syncwarp, "shared race|uninitialised shared read", "'rows'") {
  SIAM_LAUNCH((partial_syncwarp_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
