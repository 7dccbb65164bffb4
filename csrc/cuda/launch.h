// The CUDA row engine as host code sees it: launch shapes and typed launchers.
// No torch and no CUDA headers; `stream` is a cudaStream_t.
#pragma once

#include <algorithm>
#include <cstdint>

#include "math/formulas.h"
#include "math/params.h"

namespace siamcuda::cuda {

constexpr int kRowThreads = 128;     // per block
constexpr int kRowBlocksPerSm = 16;  // 2048 threads, the most an SM of any architecture holds
constexpr int kAccessBytes = 16;     // one load of a lane
constexpr int kHeldAccesses = 4;     // per input, in flight at once and kept in registers

// How rows are spread over threads. Depends on D and dtype alone, never on the number of rows or
// on alignment, so that neither changes a bit of a row's value.
struct RowLaunch {
  int lanes;          // threads that share a row: 1, 2, 4, ... 32
  int64_t tile_rows;  // rows whose values are added up together, by one block
  int64_t tiles;
  unsigned grid;
};

inline int dtype_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline RowLaunch row_launch(int64_t rows, int64_t columns, DType dtype, int multiprocessors) {
  const int64_t per_access = kAccessBytes / dtype_bytes(dtype);
  const int64_t accesses = columns / per_access + (columns % per_access != 0);
  RowLaunch launch{};
  // Two lanes at least, so that what a group reads at once fills 32-byte sectors.
  launch.lanes = accesses > 1 ? 2 : 1;
  while (launch.lanes < 32 && launch.lanes * kHeldAccesses < accesses) launch.lanes *= 2;
  launch.tile_rows = std::max<int64_t>(64, kRowThreads / launch.lanes);
  launch.tiles = rows / launch.tile_rows + (rows % launch.tile_rows != 0);
  const int64_t resident = static_cast<int64_t>(std::max(multiprocessors, 1)) * kRowBlocksPerSm;
  launch.grid = static_cast<unsigned>(std::min(launch.tiles, resident));
  return launch;
}

// Whether every access of kAccessBytes is aligned and whole. Changes the loads, not the arithmetic.
inline bool rows_aligned(const RowArgs& args, int inputs) {
  const int64_t per_access = kAccessBytes / dtype_bytes(args.dtype);
  if (args.columns % per_access != 0) return false;
  for (int j = 0; j < inputs; ++j) {
    if (reinterpret_cast<uintptr_t>(args.input[j].data) % kAccessBytes != 0) return false;
    if (reinterpret_cast<uintptr_t>(args.gradient[j]) % kAccessBytes != 0) return false;
    for (int d = 0; d < args.shape.ndim; ++d) {
      if (args.input[j].strides.step[d] % per_access != 0) return false;
    }
  }
  return true;
}

// Values, partial sums and gradients, whichever `args` asks for: one kernel.
template <class F>
void launch_rows(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                 void* stream);

// Hessian-vector products for double backward: one kernel.
template <class F>
void launch_rows_double_backward(const RowArgs& args, const typename F::Params& params,
                                 int multiprocessors, void* stream);

// Adds `count` partials up in one fixed order: their total times `scale` to `total` as `dtype` if
// it is not null, and [5] statistics of `rows` rows to `stats` if it is not null. One block.
void launch_reduce(const RowPartial* partials, int64_t count, int64_t rows, DType dtype,
                   void* total, double scale, double* stats, void* stream);

// The message of the last failed launch, or null.
const char* launch_error();

int device_multiprocessors(int device);

}  // namespace siamcuda::cuda
