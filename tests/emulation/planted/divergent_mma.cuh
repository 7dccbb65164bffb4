// Half a warp multiplies, the other half does not: mma.sync needs all 32 lanes.
#pragma once

#include "cuda/tensor_core.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void divergent_mma_kernel(const float* x, float* y) {  // x, y: [32]
  const std::uint32_t word = to_tf32(load<float>(x + threadIdx.x));
  const std::uint32_t a[4] = {word, word, word, word}, b[2] = {word, word};
  float c[4] = {0, 0, 0, 0};
  if (!bug || threadIdx.x < 16) mma_m16n8k8_tf32(c, a, b);
  store(c[0], y + threadIdx.x);
}

SIAM_PLANTED(divergent_mma, "divergent warp collective", "mma.sync") {
  SIAM_LAUNCH((divergent_mma_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
