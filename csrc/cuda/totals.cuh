// What becomes of the sums that tiles leave: a value a row, and their total. Kernel text for nvcc
// and for the emulator.
//
//                    values_kernel                     total_kernel
//   a block has      4 warps, a row each               all values
//   registers        32                                32
//   bytes            16 a tile and row                 8 a row
//
// Both add in one order, whatever the grid.
#pragma once

#include "cuda/batch_launch.h"
#include "cuda/common.cuh"

namespace siamcuda::cuda {

template <int kUnused = 0>
SIAM_KERNEL(kTileThreads, 8)
void values_kernel(const ValuesArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t row = blockIdx.x * int64_t{kTileWarps} + warp; row < args.rows;
       row += gridDim.x * int64_t{kTileWarps}) {
    double sum = 0;
    for (int64_t k = lane; k < args.parts; k += 32)
      sum += load<double>(args.sums + row * args.parts + k);
    SIAM_UNROLL
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWarp, sum, offset);
    if (lane != 0) continue;
    const double before = args.accumulate ? load<double>(args.values + row) : 0.0;
    store(before + args.share * sum, args.values + row);
  }
}

constexpr int kTotalThreads = 512;

template <int kUnused = 0>
SIAM_KERNEL(kTotalThreads, 1)
void total_kernel(const double* values, const int64_t count, const double factor, double* total) {
  SIAM_SHARED(double, warps, kTotalThreads / 32);
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t k = thread; k < count; k += kTotalThreads) sum += load<double>(values + k);
  SIAM_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWarp, sum, offset);
  if (thread % 32 == 0) warps[thread / 32] = sum;
  __syncthreads();
  if (thread != 0) return;
  double all = 0;
  for (int w = 0; w < kTotalThreads / 32; ++w) {
    const double part = warps[w];
    all += part;
  }
  store(factor * all, total);
}

}  // namespace siamcuda::cuda
