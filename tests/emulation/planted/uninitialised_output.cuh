// An output fresh from the allocator is accumulated into.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void uninitialised_output_kernel(const float* x, float* y) {  // x, y: [32]
  const float before = bug ? load<float>(y + threadIdx.x) : 0.0f;
  store(before + load<float>(x + threadIdx.x), y + threadIdx.x);
}

SIAM_PLANTED(uninitialised_output, "uninitialised global read", "'output'") {
  SIAM_LAUNCH((uninitialised_output_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
