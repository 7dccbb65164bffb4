// The CUDA row engine, forward and backward: kernel text for nvcc and for the emulator.
//
// Parallelisation. `lanes` threads of a warp (1 to 32, by D) share a row; lane l owns the 16-byte
// accesses l, l + lanes, ... of it, so that kHeldAccesses loads of each input are in flight per
// lane and 32 / lanes rows per warp. A block of 128 threads walks tiles of at least 64 rows, the
// grid strides over tiles. Lanes meet in a butterfly of shuffles, after which all of them hold the
// same bits; each evaluates the formula and writes its own part of the gradient row.
//
//   block tile       64 rows x D (128 / lanes rows where that is more)
//   per thread       4 accesses of 16 bytes per input, loaded together and kept in registers
//   registers        bounded to 128; 168 for the gradients of triplets and for three distances
//   shared memory    4 doubles
//   occupancy        16 and 12 warps an SM at least; in flight at D = 128 in float: 64 KB an SM for
//                    pairs, 96 KB for triplets, 72 KB where 168 registers are used
//   bytes, a row     forward: inputs x D x size read once. Gradient: the same, and inputs x D x
//                    size written once; what lies past lanes x 4 accesses of a row (2 KB), and all
//                    of an unaligned row, is read a second time, from L1 or L2
//   FLOPs, a row     forward 3D a pair, 6D a triplet; gradient 5D and 10D: far below the ratio of
//                    any GPU's arithmetic to its bandwidth, so time is bytes / bandwidth
//
// No communication between blocks: partial sums go to memory, launch_reduce adds them up in one
// order. No atomics. All indices are 64-bit; the grid is one-dimensional and bounded.
#pragma once

#include "cuda/common.cuh"
#include "math/stats.h"

namespace siamcuda::cuda {

template <class T>
struct alignas(kAccessBytes) Access {
  static constexpr int kElements = kAccessBytes / sizeof(T);
  T element[kElements];
};

template <class T, bool kAligned>
SIAM_DEVICE Access<T> load_access(const T* row, int64_t first, int64_t columns) {
  if constexpr (kAligned) {
    return load<Access<T>>(row + first);
  } else {
    Access<T> access{};
    SIAM_UNROLL
    for (int e = 0; e < Access<T>::kElements; ++e) {
      if (first + e < columns) access.element[e] = load<T>(row + first + e);
    }
    return access;
  }
}

template <class T, bool kAligned>
SIAM_DEVICE void store_access(const Access<T>& access, T* row, int64_t first, int64_t columns) {
  if constexpr (kAligned) {
    store(access, row + first);
  } else {
    SIAM_UNROLL
    for (int e = 0; e < Access<T>::kElements; ++e) {
      if (first + e < columns) store(access.element[e], row + first + e);
    }
  }
}

template <class Row, class T, class C, int kCount>
SIAM_DEVICE void accumulate_access(const StepContext<C>& step, const Access<T>* access,
                                   int64_t first, int64_t columns, C* sums) {
  SIAM_UNROLL
  for (int e = 0; e < kCount; ++e) {
    if (first + e < columns) {
      C x[Row::kInputs];
      SIAM_UNROLL
      for (int j = 0; j < Row::kInputs; ++j) {
        x[j] = static_cast<C>(math::widen(access[j].element[e]));
      }
      RowStep<Row>::accumulate(step, x, sums);
    }
  }
}

// One row of a group of lanes, in C. `here` is false for a group behind the last row, which takes
// part in the shuffles alone.
template <class F, class Row, class T, class C, bool kAligned, bool kGradient, int kCache>
struct RowTask {
  static constexpr int kInputs = Row::kInputs, kSums = Row::kSums;
  static constexpr int kElements = Access<T>::kElements;
  static constexpr int kHeld = kCache > 0 ? kCache : 1;

  const T* x[kInputs];
  int64_t columns;
  int lane, lanes;
  bool here;
  StepContext<C> step;
  C sums[kSums];
  Access<T> held[kHeld][kInputs];

  SIAM_DEVICE void sum() {
    SIAM_UNROLL
    for (int k = 0; k < kSums; ++k) sums[k] = first_sum<Row>(step);
    int64_t first = static_cast<int64_t>(lane) * kElements;
    const int64_t stride = static_cast<int64_t>(lanes) * kElements;
    const int64_t end = here ? columns : 0;
    if constexpr (kCache > 0) {
      SIAM_UNROLL
      for (int h = 0; h < kCache; ++h) {
        if (first + h * stride < end) {
          SIAM_UNROLL
          for (int j = 0; j < kInputs; ++j) {
            held[h][j] = load_access<T, kAligned>(x[j], first + h * stride, columns);
          }
        }
      }
      SIAM_UNROLL
      for (int h = 0; h < kCache; ++h) {
        if (first + h * stride < end) {
          accumulate_access<Row, T, C, kElements>(step, held[h], first + h * stride, limit(), sums);
        }
      }
      first += kCache * stride;
    }
    for (; first < end; first += stride) {
      Access<T> access[kInputs];
      SIAM_UNROLL
      for (int j = 0; j < kInputs; ++j) access[j] = load_access<T, kAligned>(x[j], first, columns);
      accumulate_access<Row, T, C, kElements>(step, access, first, limit(), sums);
    }
    meet<Row, C, kSums>(step, sums, lanes);
  }

  // An aligned row has whole accesses only: no element needs a test.
  SIAM_DEVICE int64_t limit() const { return kAligned ? INT64_MAX : columns; }

  SIAM_DEVICE void write(const C* c, T* const* out, const Access<T>* access, int64_t first) const {
    Access<T> g[kInputs];
    SIAM_UNROLL
    for (int e = 0; e < kElements; ++e) {
      C v[kInputs], row_gradient[kInputs];
      SIAM_UNROLL
      for (int j = 0; j < kInputs; ++j) v[j] = static_cast<C>(math::widen(access[j].element[e]));
      RowStep<Row>::gradient(step, v, c, row_gradient);
      SIAM_UNROLL
      for (int j = 0; j < kInputs; ++j) g[j].element[e] = math::narrow<T>(row_gradient[j]);
    }
    SIAM_UNROLL
    for (int j = 0; j < kInputs; ++j) {
      if (out[j] != nullptr) store_access<T, kAligned>(g[j], out[j], first, columns);
    }
  }

  SIAM_DEVICE void write_zero(T* const* out) const {
    const Access<T> zero{};
    for (int64_t first = static_cast<int64_t>(lane) * kElements; first < columns;
         first += static_cast<int64_t>(lanes) * kElements) {
      SIAM_UNROLL
      for (int j = 0; j < kInputs; ++j) {
        if (out[j] != nullptr) store_access<T, kAligned>(zero, out[j], first, columns);
      }
    }
  }

  // The gradient row; called by all lanes of the warp.
  SIAM_DEVICE void gradient(const C* slope, double upstream, T* const* out) {
    C c[kSums];
    bool zero = true;
    SIAM_UNROLL
    for (int k = 0; k < kSums; ++k) {
      // A slope of 0 wins over any upstream gradient: an inactive row's gradient is exactly 0.
      c[k] = slope[k] == 0 ? C(0) : static_cast<C>(upstream * RowStep<Row>::kScale) * slope[k];
      zero = zero && c[k] == 0;
    }
    if constexpr (!Row::Element::kVector) {
      if (step.p - step.p != 0) {  // ties for the extreme share its gradient
        C extreme[kSums];
        SIAM_UNROLL
        for (int k = 0; k < kSums; ++k) extreme[k] = step.extreme[k] = sums[k];
        step.counting = true;
        sum();
        step.counting = false;
        SIAM_UNROLL
        for (int k = 0; k < kSums; ++k) {
          step.share[k] = 1 / sums[k];
          sums[k] = extreme[k];
        }
      }
    }
    if (!here) return;
    if (zero) {
      write_zero(out);
      return;
    }
    int64_t first = static_cast<int64_t>(lane) * kElements;
    const int64_t stride = static_cast<int64_t>(lanes) * kElements;
    if constexpr (kCache > 0) {
      SIAM_UNROLL
      for (int h = 0; h < kCache; ++h) {
        if (first < columns) write(c, out, held[h], first);
        first += stride;
      }
    }
    for (; first < columns; first += stride) {
      Access<T> access[kInputs];
      SIAM_UNROLL
      for (int j = 0; j < kInputs; ++j) access[j] = load_access<T, kAligned>(x[j], first, columns);
      write(c, out, access, first);
    }
  }
};

template <class Row>
SIAM_DEVICE bool needs_rescue(const float* sums) {
  if constexpr (!Row::Element::kSquares) return false;
  constexpr int first = std::is_same<Row, math::Products>::value ? 1 : 0;
  bool rescue = false;
  SIAM_UNROLL
  for (int k = first; k < Row::kSums; ++k) {
    rescue = rescue || (!(sums[k] >= 1e-30f && sums[k] <= 1e37f) && sums[k] == sums[k]);
  }
  return rescue;
}

// The row's sums in double, one element a lane and step.
template <class Row, class T>
SIAM_DEVICE void sum_in_double(double eps, const T* const* x, int64_t columns, int lane, int lanes,
                               double* sums) {
  StepContext<double> step;
  step.eps = eps;
  SIAM_UNROLL
  for (int k = 0; k < Row::kSums; ++k) sums[k] = 0;
  for (int64_t c = lane; c < columns; c += lanes) {
    double v[Row::kInputs];
    SIAM_UNROLL
    for (int j = 0; j < Row::kInputs; ++j) {
      v[j] = static_cast<double>(math::widen(load<T>(x[j] + c)));
    }
    RowStep<Row>::accumulate(step, v, sums);
  }
  meet<Row, double, Row::kSums>(step, sums, lanes);
}

// Blocks an SM must hold, which bounds the registers: see the table above.
template <class Row, bool kGradient>
constexpr int kRowMinBlocks = Row::kInputs == 3 && (kGradient || Row::kSums == 3) ? 3 : 4;

template <class F, class Row, class T, bool kAligned, bool kGradient>
SIAM_KERNEL(kRowThreads, (kRowMinBlocks<Row, kGradient>))
void rows_kernel(const RowArgs args, const typename F::Params params, const RowLaunch launch) {
  using C = typename math::Storage<T>::Compute;
  constexpr int kInputs = Row::kInputs, kSums = Row::kSums;
  // Element by element, one access is already four to eight loads of each input in flight.
  constexpr int kCache = kAligned ? kHeldAccesses : 0;
  SIAM_SHARED(double, warps, kRowThreads / 32);

  const int lane = static_cast<int>(threadIdx.x) % launch.lanes;
  const int group = static_cast<int>(threadIdx.x) / launch.lanes;
  const int groups = kRowThreads / launch.lanes;

  for (int64_t tile = blockIdx.x; tile < launch.tiles; tile += gridDim.x) {
    double sum = 0;
    RowStats stats{};
    // tile_rows is a multiple of groups: every thread makes as many steps, as shuffles need.
    for (int64_t i = group; i < launch.tile_rows; i += groups) {
      const int64_t row = tile * launch.tile_rows + i;
      const bool here = row < args.rows;
      const int64_t safe = here ? row : 0;

      RowTask<F, Row, T, C, kAligned, kGradient, kCache> task;
      task.columns = args.columns;
      task.lane = lane;
      task.lanes = launch.lanes;
      task.here = here;
      task.step.eps = static_cast<C>(params.eps);
      task.step.p = params.p;
      T* out[kInputs];
      SIAM_UNROLL
      for (int j = 0; j < kInputs; ++j) {
        task.x[j] = static_cast<const T*>(args.input[j].data) +
                    row_offset(args.shape, args.input[j].strides, safe);
        out[j] = args.gradient[j] == nullptr
                     ? nullptr
                     : static_cast<T*>(args.gradient[j]) + safe * args.columns;
      }
      const Label label = here ? row_label<F>(args, row, DeviceLoad()) : Label::kGenuine;
      const double upstream = kGradient && here ? row_upstream(args, row, DeviceLoad()) : 0.0;

      task.sum();
      math::Terms<C, kSums> terms = F::template evaluate<Row>(params, task.sums, label);
      double value = terms.value;
      bool collapsed = task.sums[kInputs == 3 ? 1 : 0] == 0;
      math::Distances<double> distances{0, 0};
      if (!kGradient && args.want_stats) {
        const auto found = F::template distances<Row>(params, task.sums);
        distances = {found.first, found.second};
      }
      if constexpr (std::is_same<C, float>::value && Row::Element::kSquares) {
        // Cold: the squares left float's safe range, so they are summed again in double. Their
        // slopes are back in float's range unless the distance itself is not.
        const bool rescue = here && needs_rescue<Row>(task.sums);
        if (__any_sync(kWarp, rescue)) {
          double exact[kSums];
          sum_in_double<Row, T>(params.eps, task.x, here ? args.columns : 0, lane, launch.lanes,
                                exact);
          if (rescue) {
            const math::Terms<double, kSums> again =
                F::template evaluate<Row>(params, exact, label);
            value = again.value;
            SIAM_UNROLL
            for (int k = 0; k < kSums; ++k) terms.slope[k] = static_cast<C>(again.slope[k]);
            collapsed = exact[kInputs == 3 ? 1 : 0] == 0;
            if (!kGradient && args.want_stats) {
              distances = F::template distances<Row>(params, exact);
            }
          }
        }
      }
      if (label == Label::kInvalid) {
        value = NAN;
        SIAM_UNROLL
        for (int k = 0; k < kSums; ++k) terms.slope[k] = NAN;
      }
      if constexpr (kGradient) task.gradient(terms.slope, upstream, out);

      if (here && lane == 0) {
        sum += value;
        if (args.values != nullptr) {
          write_value(args.value_dtype, args.values, row, value, DeviceStore());
        }
        if (!kGradient && args.want_stats) {
          math::add_stats<kInputs>(stats, label, value, distances.first, distances.second,
                                   collapsed);
        }
      }
    }
    if (args.partials != nullptr) {
      double* out = reinterpret_cast<double*>(args.partials + tile);
      add_block_to(out, sum, warps);
      if (!kGradient && args.want_stats) {
        add_block_to(out + 1, stats.active, warps);
        add_block_to(out + 2, stats.collapsed, warps);
        add_block_to(out + 3, stats.positives, warps);
        add_block_to(out + 4, stats.positive_distance, warps);
        add_block_to(out + 5, stats.negatives, warps);
        add_block_to(out + 6, stats.negative_distance, warps);
      }
    }
  }
}

template <class F, class Row, class T, bool kAligned>
void launch_kernel(const RowArgs& args, const typename F::Params& params, const RowLaunch& launch,
                   Stream stream) {
  bool gradient = false;
  for (int j = 0; j < Row::kInputs; ++j) gradient = gradient || args.gradient[j] != nullptr;
  const Dim3 grid(launch.grid), block(kRowThreads);
  if (gradient) {
    SIAM_LAUNCH((rows_kernel<F, Row, T, kAligned, true>), grid, block, 0, stream, args, params,
                launch);
  } else {
    SIAM_LAUNCH((rows_kernel<F, Row, T, kAligned, false>), grid, block, 0, stream, args, params,
                launch);
  }
}

template <class F, class Row, class T>
void launch_typed(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                  Stream stream) {
  const RowLaunch launch = row_launch(args.rows, args.columns, args.dtype, multiprocessors);
  if (launch.tiles == 0) return;
  // The general norm waits for powf, not for loads: it has no kernel with whole accesses.
  if constexpr (Row::Element::kVector) {
    if (rows_aligned(args, Row::kInputs)) {
      return launch_kernel<F, Row, T, true>(args, params, launch, stream);
    }
  }
  launch_kernel<F, Row, T, false>(args, params, launch, stream);
}

}  // namespace siamcuda::cuda
