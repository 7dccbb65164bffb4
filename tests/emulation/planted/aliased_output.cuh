// One tensor is passed as input and as output of a kernel that reads its neighbour.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(32, 1) void aliased_output_kernel(const float* x, float* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  store(load<float>(x + (i + 1) % n), y + i);  // x, y: [n]
}

SIAM_PLANTED(aliased_output, "global race", "no order against the") {
  float* y = bench.state(64);
  SIAM_LAUNCH((aliased_output_kernel), 2, 32, 0, bench.stream, bug ? y : bench.input(64), y, 64u);
}

}  // namespace siamcuda::planted
