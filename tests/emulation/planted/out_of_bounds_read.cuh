// The tail of the last block reads past the end.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void out_of_bounds_read_kernel(const float* x, float* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = bug || i < n ? load<float>(x + i) : 0.0f;  // x: [n]
  if (i < n) store(value, y + i);                                // y: [n]
}

SIAM_PLANTED(out_of_bounds_read, "out-of-bounds read", "past the end of 'input' (400 bytes)") {
  SIAM_LAUNCH((out_of_bounds_read_kernel<bug>), 2, 64, 0, bench.stream, bench.input(100),
              bench.output(100), 100u);
  bench.require_all_written();
}

}  // namespace siamcuda::planted
