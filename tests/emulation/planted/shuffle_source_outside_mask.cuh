// Two halves of a warp reduce apart, but the first step still crosses between them.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void shuffle_source_outside_mask_kernel(const float* x, float* y) {  // [32]
  const unsigned mask = threadIdx.x < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  float value = load<float>(x + threadIdx.x);
  for (int offset = bug ? 16 : 8; offset > 0; offset /= 2)
    value += __shfl_xor_sync(mask, value, offset);
  store(value, y + threadIdx.x);
}

SIAM_PLANTED(shuffle_source_outside_mask, "lane outside mask", "shuffle reads lane") {
  float* y = bench.output(32);
  SIAM_LAUNCH((shuffle_source_outside_mask_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              y);
  bench.require_equal(y[31], 16.0f);
}

}  // namespace siamcuda::planted
