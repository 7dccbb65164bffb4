// Double backward on dual numbers; see csrc/cpu/rows_double_backward.cpp.
//
// The spread of rows over lanes is that of rows.cuh, with one element a lane and step: bytes are
// not what it waits for. Bytes, a row: inputs and tangents read twice, a gradient of each input
// written. FLOPs: as rows.cuh, with three products and a sum for each product.
#pragma once

#include "cuda/common.cuh"

namespace siamcuda::cuda {

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
      const Label label = here ? row_label<F>(args, row, DeviceLoad()) : Label::kGenuine;
      const double upstream = here ? row_upstream(args, row, DeviceLoad()) : 0.0;
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
      add_block_to(reinterpret_cast<double*>(args.partials + tile), total, warps);
    }
  }
}

template <class F, class Row, class T>
void launch_double_backward_typed(const RowArgs& args, const typename F::Params& params,
                                  int multiprocessors, Stream stream) {
  const RowLaunch launch = row_launch(args.rows, args.columns, args.dtype, multiprocessors);
  if (launch.tiles == 0) return;
  SIAM_LAUNCH((rows_double_backward_kernel<F, Row, T>), Dim3(launch.grid), Dim3(kRowThreads), 0,
              stream, args, params, launch);
}

}  // namespace siamcuda::cuda
