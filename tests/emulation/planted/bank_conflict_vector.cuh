// 16-byte loads of rows 32 floats apart: a quarter warp reads eight rows from the same four banks.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void bank_conflict_vector_kernel(float* y) {  // y: [32]
  constexpr unsigned pitch = bug ? 32 : 36;
  SIAM_SHARED(float, tile, 32 * pitch);
  for (unsigned row = 0; row < 32; ++row) tile[row * pitch + threadIdx.x] = 1.0f;
  __syncthreads();
  const auto four = load_shared<float4>(tile, threadIdx.x * pitch);
  store(four.x + four.y + four.z + four.w, y + threadIdx.x);
}

SIAM_PLANTED(bank_conflict_vector, "bank conflict", "8-way") {
  SIAM_LAUNCH((bank_conflict_vector_kernel<bug>), 1, 32, 0, bench.stream, bench.output(32));
  bench.require_conflict_free();
}

}  // namespace siamcuda::planted
