// The launchers per storage type: one translation unit each, see rows_typed.inl.
#pragma once

#include "math/formulas.h"
#include "math/params.h"

namespace siamcuda::cuda {

template <class F, class T>
struct TypedRows {
  static void run(const RowArgs& args, const typename F::Params& params, int multiprocessors,
                  void* stream);
  static void run_double_backward(const RowArgs& args, const typename F::Params& params,
                                  int multiprocessors, void* stream);
};

}  // namespace siamcuda::cuda
