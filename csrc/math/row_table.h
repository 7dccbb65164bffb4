// From run-time choices (which row, which dtype) to the kernel compiled for them: one table.
#pragma once

#include "math/formulas.h"
#include "math/params.h"

namespace siamcuda {

template <class Kernel, class F, class T, class... Rows, class... Rest>
typename Kernel::Result run_from_list(math::RowList<Rows...>, const RowArgs& args,
                                      const typename F::Params& params, Rest... rest) {
  using Function = typename Kernel::Result (*)(const RowArgs&, const typename F::Params&, Rest...);
  static constexpr Function table[] = {Kernel::template run<F, Rows, T>...};
  return table[F::row(params)](args, params, rest...);
}

// Calls Kernel::run<F, Row, T>(args, params, rest...) for the row that the options choose.
template <class Kernel, class F, class T, class... Rest>
typename Kernel::Result run_for_row(const RowArgs& args, const typename F::Params& params,
                                    Rest... rest) {
  return run_from_list<Kernel, F, T>(typename F::Rows{}, args, params, rest...);
}

// The same, with T from the dtype that the inputs have.
template <class Kernel, class F, class... Rest>
typename Kernel::Result run_for_row_and_dtype(const RowArgs& args, const typename F::Params& params,
                                              Rest... rest) {
  switch (args.dtype) {
    case DType::kFloat16: return run_for_row<Kernel, F, math::Half>(args, params, rest...);
    case DType::kBFloat16: return run_for_row<Kernel, F, math::BFloat16>(args, params, rest...);
    case DType::kFloat64: return run_for_row<Kernel, F, double>(args, params, rest...);
    case DType::kFloat32: break;
  }
  return run_for_row<Kernel, F, float>(args, params, rest...);
}

}  // namespace siamcuda
