// Sums of the tiles of a sweep, added to those of the launches before. Kernel text for nvcc and for
// the emulator.
//
//   moments_kernel   one block of 512 threads: 128 for each of four sums, tiles in turn, then
//   halves registers        50 shared memory    4 KiB bytes            32 a tile FLOPs            4
//   a tile, in double
//
// One order, whatever the grid of the tiles was.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/verify_launch.h"

namespace siamcuda::cuda {

constexpr int kMomentThreads = 512;

template <int kUnused = 0>
SIAM_KERNEL(kMomentThreads, 1)
void moments_kernel(const double* partials, const int64_t tiles, double* moments) {
  SIAM_SHARED(double, parts, kMomentThreads);
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t at = thread; at < tiles * kMoments; at += kMomentThreads) {
    sum += load<double>(partials + at);
  }
  parts[thread] = sum;
  SIAM_NO_UNROLL
  for (int half = kMomentThreads / 2; half >= kMoments; half /= 2) {
    __syncthreads();
    if (thread < half) {
      const double own = parts[thread], other = parts[thread + half];
      parts[thread] = own + other;
    }
  }
  if (thread < kMoments) {
    const double own = parts[thread];
    store(load<double>(moments + thread) + own, moments + thread);
  }
}

}  // namespace siamcuda::cuda
