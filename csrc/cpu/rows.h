// The CPU row engine as the torch-facing code sees it: one function per loss and SIMD level.
#pragma once

#include <cstdint>

#include "math/formulas.h"
#include "math/params.h"

namespace siamcuda::cpu {

// Runs blocks [begin, end) of kBlockRows rows each: values, partial sums, gradients, whichever of
// them `args` asks for. Returns the first row whose label is neither 0 nor 1, or -1; rows behind it
// are not done then. Every level computes a row the same way wherever in the batch it stands.
template <class F>
using RowsFunction = int64_t (*)(const RowArgs& args, const typename F::Params& params,
                                 int64_t begin, int64_t end);

namespace generic {
template <class F>
int64_t rows(const RowArgs& args, const typename F::Params& params, int64_t begin, int64_t end);
}
namespace avx2 {
template <class F>
int64_t rows(const RowArgs& args, const typename F::Params& params, int64_t begin, int64_t end);
}
namespace avx512 {
template <class F>
int64_t rows(const RowArgs& args, const typename F::Params& params, int64_t begin, int64_t end);
}

// Hessian-vector products for double backward, on dual numbers; baseline instructions only.
template <class F>
int64_t rows_double_backward(const RowArgs& args, const typename F::Params& params, int64_t begin,
                             int64_t end);

}  // namespace siamcuda::cpu
