// The block is no multiple of 32, the mask of its last warp names lanes that do not exist.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(40, 1)
void full_mask_in_partial_warp_kernel(float* y) {  // y: [40]
  const unsigned mask = bug || threadIdx.x < 32 ? 0xFFFFFFFFu : 0x000000FFu;
  const unsigned votes = __ballot_sync(mask, threadIdx.x % 2);
  store(static_cast<float>(__popc(votes)), y + threadIdx.x);
}

SIAM_PLANTED(full_mask_in_partial_warp, "divergent warp collective", "does not have") {
  float* y = bench.output(40);
  SIAM_LAUNCH((full_mask_in_partial_warp_kernel<bug>), 1, 40, 0, bench.stream, y);
  bench.require_equal(y[0], 16.0f);
  bench.require_equal(y[39], 4.0f);
}

}  // namespace siamcuda::planted
