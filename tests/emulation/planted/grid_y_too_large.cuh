// Rows are spread over grid.y, which ends at 65535.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

SIAM_KERNEL(1, 1) void grid_y_kernel(float* y) {  // y: [gridDim.x * gridDim.y]
  store(1.0f, y + gridDim.y * blockIdx.x + blockIdx.y);
}

SIAM_PLANTED(grid_y_too_large, "launch limit", "above 65535") {
  const unsigned rows = 65536;
  SIAM_LAUNCH((grid_y_kernel), bug ? Dim3(1, rows) : Dim3(rows, 1), 1, 0, bench.stream,
              bench.output(rows));
  bench.require_all_written();
}

}  // namespace siamcuda::planted
