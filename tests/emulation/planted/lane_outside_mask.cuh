// A lane calls a shuffle with a mask that does not name it.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void lane_outside_mask_kernel(const float* x, float* y) {  // x, y: [32]
  const unsigned mask = bug ? 0x0000FFFFu : 0xFFFFFFFFu;
  float value = load<float>(x + threadIdx.x);
  value += __shfl_xor_sync(mask, value, 1);
  store(value, y + threadIdx.x);
}

SIAM_PLANTED(lane_outside_mask, "lane outside mask", "does not name the lane that gives it") {
  SIAM_LAUNCH((lane_outside_mask_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
