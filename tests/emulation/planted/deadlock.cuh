// Three lanes wait for each other in a ring of masks; no two of them contradict each other alone.
#pragma once

#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(32, 1)
void deadlock_kernel(float* y) {  // y: [3]
  if (bug) {
    if (threadIdx.x == 0) __syncwarp(0b011u);
    if (threadIdx.x == 1) __syncwarp(0b110u);
    if (threadIdx.x == 2) __syncwarp(0b101u);
  } else if (threadIdx.x < 3) {
    __syncwarp(0b111u);
  }
  if (threadIdx.x < 3) store(1.0f, y + threadIdx.x);
}

SIAM_PLANTED(deadlock, "deadlock", "no thread can go on") {
  SIAM_LAUNCH((deadlock_kernel<bug>), 1, 32, 0, bench.stream, bench.output(3));
}

}  // namespace siamcuda::planted
