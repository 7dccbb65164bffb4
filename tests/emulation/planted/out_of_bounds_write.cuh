// A vector store of four covers more than the elements that are left.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

struct alignas(16) Four {
  float v[4];
};

template <bool bug>
SIAM_KERNEL(32, 1)
void out_of_bounds_write_kernel(float* y, unsigned n) {  // y: [n]
  const unsigned i = 4 * threadIdx.x;
  if (bug ? i < n : i + 4 <= n) {
    store(Four{{1.0f, 2.0f, 3.0f, 4.0f}}, y + i);
  } else {
    for (unsigned k = i; k < n; ++k) store(0.0f, y + k);
  }
}

SIAM_PLANTED(out_of_bounds_write, "out-of-bounds write",
             "store of 16 bytes, at byte 96 of 'output'") {
  SIAM_LAUNCH((out_of_bounds_write_kernel<bug>), 1, 32, 0, bench.stream, bench.output(26), 26u);
  bench.require_all_written();
}

}  // namespace siamcuda::planted
