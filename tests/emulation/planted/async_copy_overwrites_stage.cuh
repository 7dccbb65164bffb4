// Double buffering in which a stage is filled again while slower warps still read it.
#pragma once

#include "cuda/async_copy.cuh"
#include "planted.h"

namespace siamcuda::planted {

template <bool bug>
SIAM_KERNEL(64, 1)
void async_copy_overwrites_stage_kernel(const float* x, float* y) {  // x: [4, 256], y: [64]
  SIAM_SHARED(float, stages, 2 * 256);
  const unsigned mine = 4 * threadIdx.x, other = 4 * (63 - threadIdx.x);
  cp_async_16(stages + mine, x + mine, 16);
  cp_async_commit();
  float sum = 0;
  for (unsigned step = 0; step < 4; ++step) {
    const unsigned stage = step % 2 * 256, next = 256 - stage;
    cp_async_wait<0>();
    // The barrier says both that the stage is full and that nobody reads the other one any more:
    // the next copy belongs behind it.
    if (bug && step < 3) cp_async_16(stages + (next + mine), x + (256 * (step + 1) + mine), 16);
    __syncthreads();
    if (!bug && step < 3) cp_async_16(stages + (next + mine), x + (256 * (step + 1) + mine), 16);
    cp_async_commit();
    const float value = stages[stage + other];
    sum += value;
  }
  store(sum, y + threadIdx.x);
}

SIAM_PLANTED(async_copy_overwrites_stage, "shared race|asynchronous copy in flight", "'stages'") {
  SIAM_LAUNCH((async_copy_overwrites_stage_kernel<bug>), 1, 64, 0, bench.stream, bench.input(1024),
              bench.output(64));
}

}  // namespace siamcuda::planted
