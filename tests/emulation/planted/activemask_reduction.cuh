// __activemask() is taken for the lanes that entered the branch; it is any set that happens to run
// together.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void activemask_reduction_kernel(const float* x, float* y) {  // x: [32], y: [1]
  float sum = load<float>(x + threadIdx.x);
  const unsigned mask = bug ? __activemask() : 0xFFFFFFFFu;
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(mask, sum, offset);
  if (threadIdx.x == 0) store(sum, y);
}

SIAM_PLANTED(activemask_reduction, "lane outside mask", "shuffle reads lane") {
  float* y = bench.output(1);
  SIAM_LAUNCH((activemask_reduction_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32), y);
  bench.require_equal(y[0], 32.0f);
}

}  // namespace siamcuda::planted
