// A grid that is rounded down leaves the tail of the output as the allocator gave it.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(32, 1) void unwritten_output_kernel(float* y, unsigned n) {  // y: [n]
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) store(1.0f, y + i);
}

SIAM_PLANTED(unwritten_output, "unwritten output", "16 bytes of an output") {
  const unsigned n = 100;
  SIAM_LAUNCH((unwritten_output_kernel), bug ? n / 32 : (n + 31) / 32, 32, 0, bench.stream,
              bench.output(n), n);
  bench.require_all_written();
}

}  // namespace siamcuda::planted
