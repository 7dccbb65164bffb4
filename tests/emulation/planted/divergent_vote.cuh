// Half of a warp votes while the other half already waits at the barrier of the block.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void divergent_vote_kernel(float* y) {  // y: [64]
  int any = 0;
  if (!bug || threadIdx.x % 2 == 0) any = __any_sync(0xFFFFFFFFu, threadIdx.x == 4);
  __syncthreads();
  store(static_cast<float>(any), y + threadIdx.x);
}

SIAM_PLANTED(divergent_vote, "divergent warp collective", "__syncthreads") {
  SIAM_LAUNCH((divergent_vote_kernel<bug>), 1, 64, 0, bench.stream, bench.output(64));
}

}  // namespace siamcuda::planted
