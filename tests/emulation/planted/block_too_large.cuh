// A block of more than 1024 threads.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(1024, 1) void block_too_large_kernel(float* y) {  // y: [blockDim.x * blockDim.y]
  store(1.0f, y + threadIdx.y * blockDim.x + threadIdx.x);
}

SIAM_PLANTED(block_too_large, "launch limit", "more than 1024 threads") {
  SIAM_LAUNCH((block_too_large_kernel), 1, Dim3(32, bug ? 33 : 32), 0, bench.stream,
              bench.output(32 * 33));
}

}  // namespace siamcuda::planted
