// Counting the distances of all pairs: what siamcuda.verification asks of the tile engine.
//
// Each operator takes rows [R, D] and columns [C, D], sorted by label, and for each row the range
// of columns that show the same identity. With `triangle` row i takes the columns behind diagonal +
// i alone: each pair of a set once. None is differentiable.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "cpu/verify.h"

namespace siamcuda::ops::verify {

struct SweepOperands {
  const char* name;           // of the operator, for messages
  const at::Tensor& rows;     // [R, D] float32 or float64
  const at::Tensor& columns;  // [C, D]
  const at::Tensor& genuine;  // [R, 2] int64: first and last + 1 of the genuine columns
  std::string_view metric;    // "sqeuclidean", "euclidean" or "cosine"
};

// Raises for operands that don't fit; on real or fake tensors.
void check_sweep(const SweepOperands& operands);
// `what` must be an int64 tensor of this shape, -1 for any size.
void check_indices(const char* name, const char* what, const at::Tensor& t,
                   std::initializer_list<c10::SymInt> shape);
cpu::Metric parse_metric(const char* name, std::string_view metric);

}  // namespace siamcuda::ops::verify
