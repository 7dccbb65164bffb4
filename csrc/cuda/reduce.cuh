// The second stage of sums: each thread of one block adds every 128th tile's partial, and add_block
// adds the threads. Bytes: 56 a tile with statistics, 8 without. One FLOP a double.
#pragma once

#include "cuda/common.cuh"

namespace siamcuda::cuda {

struct ReduceArgs {
  const RowPartial* partials;  // [count]
  int64_t count;
  int64_t rows;
  DType dtype;
  void* total;  // 0-d dtype, or null
  double scale;
  double* stats;  // [5], or null
};

SIAM_DEVICE double add_field(const ReduceArgs& args, int field, const Shared<double>& warps) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < args.count; i += kRowThreads) {
    sum += load<double>(reinterpret_cast<const double*>(args.partials + i) + field);
  }
  return add_block(sum, warps);
}

template <int kUnused = 0>
SIAM_KERNEL(kRowThreads, 1)
void reduce_kernel(const ReduceArgs args) {
  SIAM_SHARED(double, warps, kRowThreads / 32);
  if (args.total != nullptr) {
    const double sum = add_field(args, 0, warps);
    if (threadIdx.x == 0) write_value(args.dtype, args.total, 0, sum * args.scale, DeviceStore());
  }
  if (args.stats != nullptr) {
    double field[7];  // in registers, as all its indices are known
    SIAM_UNROLL
    for (int f = 1; f < 7; ++f) field[f] = add_field(args, f, warps);
    if (threadIdx.x == 0) {
      store(static_cast<double>(args.rows), args.stats);
      store(field[1], args.stats + 1);
      store(field[2], args.stats + 2);
      store(field[4] / (field[3] > 1 ? field[3] : 1), args.stats + 3);
      store(field[6] / (field[5] > 1 ? field[5] : 1), args.stats + 4);
    }
  }
}

}  // namespace siamcuda::cuda
