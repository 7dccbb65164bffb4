// The second stage of a reduction reads more partial sums than the first launch wrote; what that
// one did write stays readable.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(32, 1) void first_stage_kernel(const float* x, float* partial) {
  store(load<float>(x + blockIdx.x), partial + blockIdx.x);  // x, partial: [gridDim.x]
}
SIAM_KERNEL(32, 1) void second_stage_kernel(const float* partial, float* y, unsigned n) {
  float sum = 0.0f;
  for (unsigned i = 0; i < n; ++i) sum += load<float>(partial + i);  // partial: [n]
  store(sum, y);                                                     // y: [1]
}

SIAM_PLANTED(partials_not_written, "uninitialised global read", "at byte 32 of 'output'") {
  float* partial = bench.output(16);
  float* y = bench.output(1);
  SIAM_LAUNCH((first_stage_kernel), bug ? 8 : 16, 1, 0, bench.stream, bench.input(16), partial);
  SIAM_LAUNCH((second_stage_kernel), 1, 1, 0, bench.stream, partial, y, 16u);
  bench.require_equal(y[0], 16.0f);
}

}  // namespace siamcuda::planted
