// What becomes of the sums that tiles leave: a value a row, and their total. Kernel text for nvcc
// and for the emulator.
//
//                    values_kernel                     total_kernel
//   a block has      4 warps, a row each               all values
//   registers        56                                64
//   bytes            16 a tile and row                 8 a row, with counts 56
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

// The sum over the block, to thread 0.
SIAM_DEVICE double add_threads(double sum, const Shared<double>& warps) {
  const int thread = static_cast<int>(threadIdx.x);
  SIAM_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWarp, sum, offset);
  __syncthreads();  // the last ones are no longer read
  if (thread % 32 == 0) warps[thread / 32] = sum;
  __syncthreads();
  double all = 0;
  for (int w = 0; w < (thread == 0 ? kTotalThreads / 32 : 0); ++w) {
    const double part = warps[w];
    all += part;
  }
  return all;
}

template <int kUnused = 0>
SIAM_KERNEL(kTotalThreads, 1)
void total_kernel(const TotalArgs args) {
  SIAM_SHARED(double, warps, kTotalThreads / 32);
  const int thread = static_cast<int>(threadIdx.x);
  double total = 0;
  for (int64_t k = thread; k < args.rows; k += kTotalThreads)
    total += load<double>(args.values + k);
  total = args.factor * add_threads(total, warps);
  if (args.report == nullptr) {
    if (thread == 0) store(total, args.total);
    return;
  }
  // Counts are below 2^53.
  double found[kAnchorCounts + 2] = {};
  for (int64_t k = thread; k < args.rows; k += kTotalThreads) {
    SIAM_UNROLL
    for (int c = 0; c < kAnchorCounts; ++c) {
      found[c] += static_cast<double>(load<int64_t>(args.counts + k * kAnchorCounts + c));
    }
    SIAM_UNROLL
    for (int c = 0; c < 2; ++c)
      found[kAnchorCounts + c] += load<double>(args.distances + 2 * k + c);
  }
  SIAM_UNROLL
  for (int c = 0; c < kAnchorCounts + 2; ++c) found[c] = add_threads(found[c], warps);
  if (thread != 0) return;
  const auto at_least_one = [](double x) { return x < 1 ? 1.0 : x; };
  double divisor = 1;
  if (args.divide_by >= 0) divisor = at_least_one(args.divide_by == 0 ? found[0] : found[1]);
  store(total / divisor, args.total);
  store(1 / divisor, args.scale);
  const double summed = at_least_one(found[3]);
  SIAM_UNROLL
  for (int c = 0; c < 3; ++c) store(found[c], args.report + c);
  store(found[kAnchorCounts] / summed, args.report + 3);
  store(found[kAnchorCounts + 1] / summed, args.report + 4);
}

}  // namespace siamcuda::cuda
