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

#include "math/verify.h"

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
// `what` must be an int64 tensor of this shape, -1 for any size, where rows are.
void check_indices(const SweepOperands& operands, const char* what, const at::Tensor& t,
                   std::initializer_list<c10::SymInt> shape);
math::Metric parse_metric(const char* name, std::string_view metric);

// What only values can tell, so on real tensors; on a GPU each of these waits for the device.
// Genuine ranges must lie within the columns.
void check_ranges(const SweepOperands& operands);
// Every part of a table must be one of `size` bins.
void check_table(const SweepOperands& operands, const at::Tensor& table, int64_t size);
void check_intervals(const SweepOperands& operands, const at::Tensor& low, const at::Tensor& shift);
// [identities, kReplicates], and which of them rows or columns show: [count] as int32.
void check_drawn(const SweepOperands& operands, const at::Tensor& drawn);
at::Tensor as_identities(const SweepOperands& operands, const char* what, const at::Tensor& t,
                         const at::Tensor& of, const at::Tensor& drawn);

}  // namespace siamcuda::ops::verify
