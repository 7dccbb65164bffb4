// Lanes of one warp come to different shuffles, each with the full mask.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void divergent_shuffle_kernel(const float* x, float* y) {  // x, y: [32]
  float value = load<float>(x + threadIdx.x);
  if (!bug || threadIdx.x < 16) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  } else {
    value -= __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  }
  store(value, y + threadIdx.x);
}

SIAM_PLANTED(divergent_shuffle, "divergent warp collective", "which waits in a shuffle at") {
  SIAM_LAUNCH((divergent_shuffle_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
