// Lanes past the end return early; a reduction over the full mask then reads their registers.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void shuffle_from_exited_lane_kernel(const float* x, float* y, unsigned n) {
  if (bug && threadIdx.x >= n) return;
  float sum = threadIdx.x < n ? load<float>(x + threadIdx.x) : 0.0f;  // x: [n]
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
  if (threadIdx.x == 0) store(sum, y);  // y: [1]
}

SIAM_PLANTED(shuffle_from_exited_lane, "divergent warp collective", "exited") {
  float* y = bench.output(1);
  SIAM_LAUNCH((shuffle_from_exited_lane_kernel<bug>), 1, 32, 0, bench.stream, bench.input(20), y,
              20u);
  bench.require_equal(y[0], 20.0f);
}

}  // namespace siamcuda::planted
