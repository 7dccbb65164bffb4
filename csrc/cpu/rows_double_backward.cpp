// Double backward of every row loss: the same steps and formulas, run on dual numbers.
//
// With tangents V on the inputs, the tangent of a loss's gradient is its Hessian times V, and the
// tangent of the loss is the gradient of the upstream gradient. All in double: nobody's inner loop.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/plain_access.h"
#include "cpu/rows.h"
#include "math/labels.h"
#include "math/row_table.h"

namespace siamcuda::cpu {
namespace duals {

using math::magnitude;
using math::multiply_add;
using math::sign;
#include "math/steps.inl"

using S = math::Dual<double>;

struct DoubleBackwardKernel {
  using Result = int64_t;
  template <class F, class Row, class T>
  static int64_t run(const RowArgs& args, const typename F::Params& params, int64_t begin,
                     int64_t end) {
    constexpr int kInputs = Row::kInputs, kSums = Row::kSums;
    for (int64_t block = begin; block < end; ++block) {
      RowPartial partial{};
      const int64_t last = std::min(args.rows, (block + 1) * kBlockRows);
      for (int64_t row = block * kBlockRows; row < last; ++row) {
        const Label label = row_label<F>(args, row, PlainLoad());
        if (label == Label::kInvalid) return row;
        const T *x[kInputs], *v[kInputs];
        for (int j = 0; j < kInputs; ++j) {
          x[j] = static_cast<const T*>(args.input[j].data) +
                 row_offset(args.shape, args.input[j].strides, row);
          v[j] = args.tangent[j].data ? static_cast<const T*>(args.tangent[j].data) +
                                            row_offset(args.shape, args.tangent[j].strides, row)
                                      : nullptr;
        }
        const auto element = [&](int64_t c, S* e) {
          for (int j = 0; j < kInputs; ++j) {
            e[j] = S(math::widen(x[j][c]), v[j] ? math::widen(v[j][c]) : 0.0);
          }
        };
        const double upstream = row_upstream(args, row, PlainLoad());

        StepContext<S> step;
        step.eps = S(params.eps);
        step.p = params.p;
        const auto accumulate = [&](S* sums) {
          const bool least =
              !Row::Element::kVector && !step.counting && params.p < 0 && std::isinf(params.p);
          for (int k = 0; k < kSums; ++k) {
            sums[k] = S(least ? std::numeric_limits<double>::infinity() : 0.0);
          }
          for (int64_t c = 0; c < args.columns; ++c) {
            S e[kInputs];
            element(c, e);
            RowStep<Row>::accumulate(step, e, sums);
          }
        };
        S sums[kSums];
        accumulate(sums);
        const math::Terms<S, kSums> terms = F::template evaluate<Row>(params, sums, label);
        double upstream_gradient = 0;
        bool zero = true;
        S coefficient[kSums];
        for (int k = 0; k < kSums; ++k) {
          const S slope = terms.slope[k];
          if (slope.value != 0) upstream_gradient += slope.value * sums[k].tangent;
          coefficient[k] = S(upstream * RowStep<Row>::kScale) * slope;
          if (slope.value == 0 && slope.tangent == 0) coefficient[k] = S(0.0);
          zero = zero && slope.value == 0 && slope.tangent == 0;
        }
        if (!Row::Element::kVector && std::isinf(params.p)) {
          S count[kSums];
          for (int k = 0; k < kSums; ++k) step.extreme[k] = sums[k];
          step.counting = true;
          accumulate(count);
          step.counting = false;
          for (int k = 0; k < kSums; ++k) step.share[k] = S(1 / count[k].value);
        }
        upstream_gradient *= args.upstream_scale;
        partial.sum += upstream_gradient;
        if (args.values) {
          write_value(args.value_dtype, args.values, row, upstream_gradient, PlainStore());
        }
        for (int64_t c = 0; c < args.columns; ++c) {
          S e[kInputs], g[kInputs];
          if (!zero) {
            element(c, e);
            RowStep<Row>::gradient(step, e, coefficient, g);
          }
          for (int j = 0; j < kInputs; ++j) {
            T* out = static_cast<T*>(args.gradient[j]);
            if (out) out[row * args.columns + c] = math::narrow<T>(g[j].tangent);
          }
        }
      }
      if (args.partials) args.partials[block] = partial;
    }
    return -1;
  }
};

}  // namespace duals

template <class F>
int64_t rows_double_backward(const RowArgs& args, const typename F::Params& params, int64_t begin,
                             int64_t end) {
  return run_for_row_and_dtype<duals::DoubleBackwardKernel, F>(args, params, begin, end);
}

#define SIAM_INSTANTIATE(F)                                                                    \
  template int64_t rows_double_backward<F>(const RowArgs&, const typename F::Params&, int64_t, \
                                           int64_t);
SIAM_FOR_EACH_LOSS(SIAM_INSTANTIATE)
#undef SIAM_INSTANTIATE

}  // namespace siamcuda::cpu
