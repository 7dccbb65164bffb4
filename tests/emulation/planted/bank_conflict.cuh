// A column of a 32 x 32 tile lies in one bank; one float of padding spreads it.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void bank_conflict_kernel(const float* x, float* y) {  // x, y: [32, 32]
  constexpr unsigned pitch = bug ? 32 : 33;
  SIAM_SHARED(float, tile, 32 * pitch);
  for (unsigned row = 0; row < 32; ++row)
    tile[row * pitch + threadIdx.x] = load<float>(x + 32 * row + threadIdx.x);
  __syncthreads();
  for (unsigned row = 0; row < 32; ++row)
    store<float>(tile[threadIdx.x * pitch + row], y + 32 * row + threadIdx.x);
}

SIAM_PLANTED(bank_conflict, "bank conflict", "32-way") {
  SIAM_LAUNCH((bank_conflict_kernel<bug>), 1, 32, 0, bench.stream, bench.input(1024),
              bench.output(1024));
  bench.require_conflict_free();
  bench.require_coalesced();
}

}  // namespace siamcuda::planted
