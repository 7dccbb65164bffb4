// What the CUDA operators of verification share: rows and columns cut into launches, their norms,
// and what is asked of all pairs. Compiled a second time against the emulator.
#pragma once

#include <ATen/Functions.h>

#include <algorithm>

#include "cuda/batch_launch.h"
#include "cuda/verify_launch.h"
#include "ops/cuda/device.h"
#include "ops/cuda/launches.h"
#include "ops/tensors.h"
#include "ops/verify.h"

namespace siamcuda::ops::verify {

using at::Tensor;

inline cuda::Counter* counters_of(const Tensor& counts) {
  return reinterpret_cast<cuda::Counter*>(counts.mutable_data_ptr<int64_t>());
}

// Small under the emulator, so that sets that it can take need several launches.
inline cuda::SweepLimits sweep_limits() {
#if defined(SIAM_EMULATED)
  return {320, 8, 350, 200};
#else
  return {};
#endif
}

class CudaSweep {
 public:
  CudaSweep(const SweepOperands& operands, int64_t diagonal, bool triangle)
      : o(operands),
        rows(dense(o.rows)),
        columns(dense(o.columns)),
        dtype(dtype_of(rows.scalar_type())),
        device(device_in_use()),
        stream(current_stream()),
        genuine_(o.genuine.contiguous()) {
    check_ranges(o);
    args.dim = rows.size(1);
    args.genuine = genuine_.const_data_ptr<int64_t>();
    args.diagonal = diagonal;
    args.triangle = triangle;
    args.metric = parse_metric(o.name, o.metric);
  }

  cuda::SweepPlan plan() const {
    return cuda::sweep_plan(rows.size(0), columns.size(0), sweep_limits());
  }

  // run(args): launches over the pairs of some rows and some columns; together, of all.
  template <class Run>
  void each(const Run& run) const {
    each_of(rows, {}, plan(), run);
  }

  // The same for rows [count, D] that are those with these numbers, [count].
  template <class Run>
  void each_of(const Tensor& some, const Tensor& numbers, const cuda::SweepPlan& plan,
               const Run& run) const {
    LaunchMemory memory;
    memory.reads(some, "rows");
    memory.reads(columns, "columns");
    memory.reads(genuine_, "genuine");
    memory.reads(numbers, "numbers of rows");
    const Tensor own = at::empty({std::min(plan.rows, some.size(0))}, rows.options());
    const Tensor others = at::empty({plan.columns}, rows.options());
    memory.scratch(own, "norms of rows");
    memory.scratch(others, "norms of columns");
    cuda::SweepArgs part = args;
    for (int64_t c = 0; c < columns.size(0); c += plan.columns) {
      part.first_column = c;
      part.columns = part_of(columns, c, plan.columns, others);
      for (int64_t r = 0; r < some.size(0); r += plan.rows) {
        // Later rows have no column behind them here.
        if (args.triangle && !numbers.defined() && args.diagonal + r + 1 >= c + part.columns.rows) {
          break;
        }
        part.first_row = r;
        part.rows = part_of(some, r, plan.rows, own);
        if (numbers.defined()) part.positions = numbers.const_data_ptr<int64_t>() + r;
        run(part);
        check_launch(o.name);
      }
    }
  }

  const SweepOperands& o;
  const Tensor rows, columns;
  const DType dtype;
  const cuda::TileDevice device;
  void* const stream;
  cuda::SweepArgs args{};

 private:
  static Tensor dense(const Tensor& x) {
    return x.size(1) > 1 && x.stride(1) != 1 ? x.contiguous() : x;
  }
  cuda::TileMatrix part_of(const Tensor& x, int64_t first, int64_t most,
                           const Tensor& norms) const {
    const Tensor part = x.narrow(0, first, std::min(most, x.size(0) - first));
    const cuda::TileMatrix matrix{part.const_data_ptr(), part.size(0), part.stride(0), 0,
                                  norms.mutable_data_ptr()};
    cuda::launch_norms(matrix, 1, x.size(1), dtype, device, stream);
    return matrix;
  }

  Tensor genuine_;
};

// The hardest pairs of one kind: distances [hardest] and rows of both ends [hardest, 2], written
// from the front. `least` [rows]: see cuda::HistogramArgs.
void find_hardest(const CudaSweep& sweep, bool genuine, const Tensor& least,
                  const Tensor& row_index, const Tensor& column_index, Tensor distances,
                  Tensor pairs);

}  // namespace siamcuda::ops::verify
