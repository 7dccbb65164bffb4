// Every block adds its part to one output with a plain load and store.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void race_between_blocks_kernel(float* total) {  // total: [1]
  if (threadIdx.x != 0) return;
  if (bug) {
    store(load<float>(total) + 1.0f, total);
  } else {
    atomicAdd(total, 1.0f);
  }
}

SIAM_PLANTED(race_between_blocks, "global race", "the block that ran as number") {
  float* total = bench.state(1);
  total[0] = 0.0f;
  SIAM_LAUNCH((race_between_blocks_kernel<bug>), 8, 32, 0, bench.stream, total);
  bench.require_equal(total[0], 8.0f);
}

}  // namespace siamcuda::planted
