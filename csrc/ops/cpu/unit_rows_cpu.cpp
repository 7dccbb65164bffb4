// Rows of unit length, for cosine distances: the same bits at every instruction set.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/loss_op.h"
#include "ops/verify.h"

namespace siamcuda::ops {
namespace {

// The norm in double, each element rounded once. A zero row stays zero; a row that is not finite
// has no direction and becomes NaN.
template <class T>
void unit_row(const T* from, int64_t columns, double* scaled, T* to) {
  double largest = 0, norm = 0;
  bool finite = true;
  for (int64_t k = 0; k < columns; ++k) {
    finite &= std::isfinite(from[k]);
    largest = std::max(largest, std::fabs(static_cast<double>(from[k])));
  }
  if (!finite || largest == 0) {
    std::fill_n(to, columns, finite ? T(0) : std::numeric_limits<T>::quiet_NaN());
    return;
  }
  // Squares of float64 would leave the range; a power of two brings them back without a rounding.
  int exponent = 0;
  std::frexp(largest, &exponent);
  for (int64_t k = 0; k < columns; ++k) {
    scaled[k] = std::ldexp(static_cast<double>(from[k]), -exponent);
    norm += scaled[k] * scaled[k];
  }
  const double length = std::sqrt(norm);
  for (int64_t k = 0; k < columns; ++k) to[k] = static_cast<T>(scaled[k] / length);
}

at::Tensor unit_rows(const at::Tensor& given) {
  check_unit_rows(given);
  const at::Tensor x = given.contiguous();
  at::Tensor out = at::empty_like(x);
  const int64_t columns = x.size(1);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "unit_rows", [&] {
    const scalar_t* const from = x.const_data_ptr<scalar_t>();
    scalar_t* const to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, x.size(0), 64, [&](int64_t begin, int64_t end) {
      std::vector<double> scaled(columns);
      for (int64_t i = begin; i < end; ++i) {
        unit_row(from + i * columns, columns, scaled.data(), to + i * columns);
      }
    });
  });
  return out;
}

SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, CPU, m) { m.impl("unit_rows", unit_rows); }

}  // namespace
}  // namespace siamcuda::ops
