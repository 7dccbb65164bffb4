// What checks and entry points say and ask of a tensor.
#pragma once

#include <ATen/ATen.h>

#include <sstream>
#include <string>

#include "math/params.h"

namespace siamcuda::ops {

// For messages: dtype, shape and device.
inline std::string describe(const at::Tensor& t) {
  std::ostringstream text;
  text << t.scalar_type() << " tensor of shape " << t.sym_sizes() << " on " << t.device();
  return text.str();
}

inline bool is_supported_dtype(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 || type == at::kFloat || type == at::kDouble;
}

inline DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kFloat: return DType::kFloat32;
    default: return DType::kFloat64;
  }
}

}  // namespace siamcuda::ops
