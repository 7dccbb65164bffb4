// Padding by one float removes bank conflicts and breaks 16-byte loads of the rows.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void misaligned_shared_load_kernel(float* y) {  // y: [32]
  constexpr unsigned pitch = bug ? 33 : 36;
  SIAM_SHARED(float, tile, 32 * pitch);
  for (unsigned row = 0; row < 32; ++row) tile[row * pitch + threadIdx.x] = 1.0f;
  __syncthreads();
  const auto four = load_shared<float4>(tile, threadIdx.x * pitch);
  store(four.x + four.y + four.z + four.w, y + threadIdx.x);
}

SIAM_PLANTED(misaligned_shared_load, "misaligned access", "of 'tile'") {
  SIAM_LAUNCH((misaligned_shared_load_kernel<bug>), 1, 32, 0, bench.stream, bench.output(32));
}

}  // namespace siamcuda::planted
