// The CUDA row engine: kernel text for nvcc and for the emulator.
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
//                    size written once; what lies past lanes x 4 accesses of a row (2 KB, or 1 KB
//                    if 16-bit and unaligned) is read a second time, from L1 or L2
//   FLOPs, a row     forward 3D a pair, 6D a triplet; gradient 5D and 10D: far below the ratio of
//                    any GPU's arithmetic to its bandwidth, so time is bytes / bandwidth
//
// No communication between blocks: partial sums go to memory, launch_reduce adds them up in one
// order. No atomics. All indices are 64-bit; the grid is one-dimensional and bounded.
#pragma once

#include "cuda/launch.h"
#include "cuda/platform.cuh"
#include "math/formulas.h"
#include "math/labels.h"
#include "math/numerics.h"
#include "math/params.h"
#include "math/stats.h"

namespace siamcuda::cuda {

using math::magnitude;
using math::multiply_add;
using math::sign;
#include "math/steps.inl"

constexpr unsigned kWarp = 0xffffffffu;

// Functions that are handed to the readers of math/labels.h, which also run on the host.
struct DeviceLoad {
  template <class T>
  SIAM_HOST_DEVICE T operator()(const T* p) const {
#if defined(__CUDA_ARCH__) || defined(SIAM_EMULATED)
    return load<T>(p);
#else
    return *p;
#endif
  }
};
struct DeviceStore {
  template <class T>
  SIAM_HOST_DEVICE void operator()(T value, T* p) const {
#if defined(__CUDA_ARCH__) || defined(SIAM_EMULATED)
    store(value, p);
#else
    *p = value;
#endif
  }
};

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

// Combines the sums of the `lanes` threads of a row; all 32 lanes of the warp take part.
template <class Row, class C, int kSums>
SIAM_DEVICE void meet(const StepContext<C>& step, C* sums, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    SIAM_UNROLL
    for (int k = 0; k < kSums; ++k) {
      const C other = __shfl_xor_sync(kWarp, sums[k], offset);
      if constexpr (!Row::Element::kVector) {
        const C p = static_cast<C>(step.p);
        if (p - p != 0 && !step.counting) {
          sums[k] = ElementStep<typename Row::Element>::extreme(p, sums[k], other);
          continue;
        }
      }
      sums[k] = sums[k] + other;
    }
  }
}

template <class Row, class C>
SIAM_DEVICE C first_sum(const StepContext<C>& step) {
  if constexpr (!Row::Element::kVector) {
    const C p = static_cast<C>(step.p);
    if (p < 0 && p - p != 0 && !step.counting) return -p;  // +inf, the identity of min
  }
  return C(0);
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

// The sum of one value per thread in a fixed order; the result is thread 0's.
SIAM_DEVICE double add_block(double value, const Shared<double>& warps) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(kWarp, value, offset);
  }
  __syncthreads();  // the last sum's readers are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kRowThreads / 32; ++w) {
      const double part = warps[w];
      total += part;
    }
  }
  return total;
}

SIAM_DEVICE void add_block_to(double* out, double value, const Shared<double>& warps) {
  const double total = add_block(value, warps);
  if (threadIdx.x == 0) store(total, out);
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
      Label label = Label::kGenuine;
      if (F::kHasTarget && here) {
        label = decode_label(
            read_label(args.label_type, args.target.data,
                       row_offset(args.shape, args.target.strides, safe), DeviceLoad()),
            args.similar_label);
      }
      double upstream = args.upstream_scale;
      if (kGradient && args.upstream.data != nullptr && here) {
        upstream *= read_value(args.value_dtype, args.upstream.data,
                               row_offset(args.shape, args.upstream.strides, safe), DeviceLoad());
      }

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

// Double backward on dual numbers; see csrc/cpu/rows_double_backward.cpp. The same spread of rows
// over lanes, one element a lane and step: bytes are not what it waits for.
template <class F, class Row, class T>
SIAM_KERNEL(kRowThreads, 1)
void rows_double_backward_kernel(const RowArgs args, const typename F::Params params,
                                 const RowLaunch launch) {
  using C = typename math::Storage<T>::Compute;
  using S = math::Dual<C>;
  constexpr int kInputs = Row::kInputs, kSums = Row::kSums;
  SIAM_SHARED(double, warps, kRowThreads / 32);

  const int lane = static_cast<int>(threadIdx.x) % launch.lanes;
  const int group = static_cast<int>(threadIdx.x) / launch.lanes;
  const int groups = kRowThreads / launch.lanes;

  for (int64_t tile = blockIdx.x; tile < launch.tiles; tile += gridDim.x) {
    double total = 0;
    for (int64_t i = group; i < launch.tile_rows; i += groups) {
      const int64_t row = tile * launch.tile_rows + i;
      const bool here = row < args.rows;
      const int64_t safe = here ? row : 0;
      const int64_t end = here ? args.columns : 0;
      const T *x[kInputs], *v[kInputs];
      SIAM_UNROLL
      for (int j = 0; j < kInputs; ++j) {
        x[j] = static_cast<const T*>(args.input[j].data) +
               row_offset(args.shape, args.input[j].strides, safe);
        v[j] = args.tangent[j].data == nullptr
                   ? nullptr
                   : static_cast<const T*>(args.tangent[j].data) +
                         row_offset(args.shape, args.tangent[j].strides, safe);
      }
      Label label = Label::kGenuine;
      if (F::kHasTarget && here) {
        label = decode_label(
            read_label(args.label_type, args.target.data,
                       row_offset(args.shape, args.target.strides, safe), DeviceLoad()),
            args.similar_label);
      }
      double upstream = args.upstream_scale;
      if (args.upstream.data != nullptr && here) {
        upstream *= read_value(args.value_dtype, args.upstream.data,
                               row_offset(args.shape, args.upstream.strides, safe), DeviceLoad());
      }
      StepContext<S> step;
      step.eps = S(static_cast<C>(params.eps));
      step.p = params.p;
      S sums[kSums];
      // Twice for p = ±inf: the extreme, then the ties for it.
      for (int pass = 0; pass < 2; ++pass) {
        S found[kSums];
        SIAM_UNROLL
        for (int k = 0; k < kSums; ++k) {
          StepContext<C> plain;
          plain.p = step.p;
          plain.counting = step.counting;
          found[k] = S(first_sum<Row>(plain));
        }
        for (int64_t c = lane; c < end; c += launch.lanes) {
          S e[kInputs];
          SIAM_UNROLL
          for (int j = 0; j < kInputs; ++j) {
            e[j] = S(static_cast<C>(math::widen(load<T>(x[j] + c))),
                     v[j] == nullptr ? C(0) : static_cast<C>(math::widen(load<T>(v[j] + c))));
          }
          RowStep<Row>::accumulate(step, e, found);
        }
        for (int offset = launch.lanes / 2; offset > 0; offset /= 2) {
          SIAM_UNROLL
          for (int k = 0; k < kSums; ++k) {
            const C value = __shfl_xor_sync(kWarp, found[k].value, offset);
            const C tangent = __shfl_xor_sync(kWarp, found[k].tangent, offset);
            const S other(value, tangent);
            if constexpr (!Row::Element::kVector) {
              const C p = static_cast<C>(step.p);
              if (p - p != 0 && !step.counting) {
                // Lanes that disagree on a tie would diverge: the lower lane's tangent wins.
                const bool upper = (lane & offset) != 0;
                const S low = upper ? other : found[k], high = upper ? found[k] : other;
                found[k] = ElementStep<typename Row::Element>::extreme(p, low, high);
                continue;
              }
            }
            found[k] = found[k] + other;
          }
        }
        if (pass == 1) {
          SIAM_UNROLL
          for (int k = 0; k < kSums; ++k) step.share[k] = S(1 / found[k].value);
          step.counting = false;
          break;
        }
        SIAM_UNROLL
        for (int k = 0; k < kSums; ++k) {
          sums[k] = found[k];
          step.extreme[k] = found[k];
        }
        if (Row::Element::kVector || !(step.p - step.p != 0)) break;
        step.counting = true;
      }

      math::Terms<S, kSums> terms = F::template evaluate<Row>(params, sums, label);
      if (label == Label::kInvalid) {
        SIAM_UNROLL
        for (int k = 0; k < kSums; ++k) terms.slope[k] = S(C(NAN), C(NAN));
      }
      double upstream_gradient = 0;
      bool zero = true;
      S coefficient[kSums];
      SIAM_UNROLL
      for (int k = 0; k < kSums; ++k) {
        const S slope = terms.slope[k];
        const bool flat = slope.value == 0 && slope.tangent == 0;
        if (slope.value != 0) {
          upstream_gradient += static_cast<double>(slope.value) * sums[k].tangent;
        }
        coefficient[k] =
            flat ? S(C(0)) : S(static_cast<C>(upstream * RowStep<Row>::kScale)) * slope;
        zero = zero && flat;
      }
      upstream_gradient *= args.upstream_scale;
      if (here && lane == 0) {
        total += upstream_gradient;
        if (args.values != nullptr) {
          write_value(args.value_dtype, args.values, row, upstream_gradient, DeviceStore());
        }
      }
      for (int64_t c = lane; c < end; c += launch.lanes) {
        S e[kInputs], g[kInputs];
        SIAM_UNROLL
        for (int j = 0; j < kInputs; ++j) {
          e[j] = S(static_cast<C>(math::widen(load<T>(x[j] + c))),
                   v[j] == nullptr ? C(0) : static_cast<C>(math::widen(load<T>(v[j] + c))));
        }
        if (!zero) RowStep<Row>::gradient(step, e, coefficient, g);
        SIAM_UNROLL
        for (int j = 0; j < kInputs; ++j) {
          T* out = static_cast<T*>(args.gradient[j]);
          if (out != nullptr) {
            store(math::narrow<T>(g[j].tangent), out + row * args.columns + c);
          }
        }
      }
    }
    if (args.partials != nullptr) {
      const double sum = add_block(total, warps);
      if (threadIdx.x == 0) store(sum, reinterpret_cast<double*>(args.partials + tile));
    }
  }
}

// The second stage: one block adds the tiles' partials, each thread every 256th of them.
// Bytes: 56 a tile with statistics, 8 without.
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

// --- launchers, per storage type -----------------------------------------------------------------

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

template <class F, class Row, class T>
void launch_double_backward_typed(const RowArgs& args, const typename F::Params& params,
                                  int multiprocessors, Stream stream) {
  const RowLaunch launch = row_launch(args.rows, args.columns, args.dtype, multiprocessors);
  if (launch.tiles == 0) return;
  SIAM_LAUNCH((rows_double_backward_kernel<F, Row, T>), Dim3(launch.grid), Dim3(kRowThreads), 0,
              stream, args, params, launch);
}

// One translation unit a storage type: these are its two doors, for each loss.
template <class F, class T>
struct TypedRows {
  static void run(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                  void* stream);
  static void run_double_backward(const RowArgs& args, const typename F::Params& params,
                                  int multiprocessors, void* stream);
};

}  // namespace siamcuda::cuda
