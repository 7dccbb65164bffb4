// The second pair of a C fragment lies eight rows down, not eight columns on.
#pragma once

#include "cuda/tensor_core.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void mma_fragment_index_kernel(float* y) {  // y: [16, 8]
  const int lane = static_cast<int>(threadIdx.x);
  // Column 0 of A is 1, 2, ... 16, and row 0 of B is 1, 2, ... 8: an outer product.
  std::uint32_t a[4], b[2];
  for (int r = 0; r < 4; ++r) {
    const MatrixPlace place = mma_a_place(1, lane, r, 0);
    a[r] = to_tf32(place.column == 0 ? static_cast<float>(place.row + 1) : 0.0f);
  }
  for (int r = 0; r < 2; ++r) {
    const MatrixPlace place = mma_b_place(1, lane, r, 0);
    b[r] = to_tf32(place.row == 0 ? static_cast<float>(place.column + 1) : 0.0f);
  }
  float c[4] = {0, 0, 0, 0};
  mma_m16n8k8_tf32(c, a, b);
  for (int r = 0; r < 4; ++r) {
    const int row = lane / 4 + (bug ? 8 * (r % 2) : 8 * (r / 2));
    const int column = 2 * (lane % 4) + (bug ? r / 2 : r % 2);
    store(c[r], y + 8 * row + column);
  }
}

SIAM_PLANTED(mma_fragment_index, "wrong result", "is not") {
  float* const y = bench.output(128);
  SIAM_LAUNCH((mma_fragment_index_kernel<bug>), 1, 32, 0, bench.stream, y);
  for (int i = 0; i < 128 && y != nullptr; ++i) {
    bench.require_equal(y[i], static_cast<float>((i / 8 + 1) * (i % 8 + 1)));
  }
}

}  // namespace siamcuda::planted
