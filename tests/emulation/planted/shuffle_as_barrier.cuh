// A shuffle is taken for a memory barrier. Lanes do meet in it, but CUDA promises no memory order.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void shuffle_as_barrier_kernel(const float* x, float* y) {  // x, y: [32]
  SIAM_SHARED(float, row, 32);
  float value = load<float>(x + threadIdx.x);
  row[threadIdx.x] = value;
  if (!bug) __syncwarp();
  value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  store(value + row[threadIdx.x ^ 1], y + threadIdx.x);
}

SIAM_PLANTED(shuffle_as_barrier, "shared race", "'row'") {
  SIAM_LAUNCH((shuffle_as_barrier_kernel<bug>), 1, 32, 0, bench.stream, bench.input(32),
              bench.output(32));
}

}  // namespace siamcuda::planted
