// Rows of 5 floats do not begin at multiples of 16 bytes.
#pragma once

#include "cuda/async_copy.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void misaligned_async_copy_kernel(const float* x, float* y) {  // x: [32, 8], y: [32]
  constexpr unsigned step = bug ? 5 : 8;
  SIAM_SHARED(float, tile, 128);
  cp_async_16(tile + 4 * threadIdx.x, x + step * threadIdx.x, 16);
  cp_async_commit();
  cp_async_wait<0>();
  store<float>(tile[4 * threadIdx.x], y + threadIdx.x);
}

SIAM_PLANTED(misaligned_async_copy, "misaligned access", "the source of an asynchronous copy") {
  SIAM_LAUNCH((misaligned_async_copy_kernel<bug>), 1, 32, 0, bench.stream, bench.input(256),
              bench.output(32));
}

}  // namespace siamcuda::planted
