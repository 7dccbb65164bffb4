// Plain argument structs between the torch-facing code and the kernels of every backend.
// No torch and no CUDA headers: the same bytes go to a CPU function and to a kernel launch.
#pragma once

#include <cstdint>

#include "math/numerics.h"

namespace siamcuda {

enum class DType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

enum class LabelType : int32_t {
  kNone,
  kUInt8,  // also bool
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
};

// What a label means after similar_label was applied.
enum class Label : int32_t { kGenuine = 0, kImpostor = 1, kInvalid = 2 };

// Which triplets of a batch count.
enum class Mining : int32_t { kAll, kHard, kSemihard, kEasyPositive };

constexpr int kMaxInputs = 3;
constexpr int kMaxRowDims = 4;

// Leading dimensions after neighbours that every tensor steps through alike were merged.
// A dense or row-strided batch has one; (B,1,D) against (1,C,D) has two.
struct RowShape {
  int32_t ndim;
  int64_t size[kMaxRowDims];
};

// Steps in elements, one per dimension of the RowShape; 0 where the tensor is expanded.
struct RowStrides {
  int64_t step[kMaxRowDims];
};

struct ConstRows {
  const void* data;  // [rows] or [rows, columns] through `strides`; columns are contiguous
  RowStrides strides;
};

// Counts and sums behind `return_stats`, in double so that a block's share adds up exactly.
struct RowStats {
  double active;
  double collapsed;
  double positives;
  double positive_distance;
  double negatives;
  double negative_distance;
};

struct RowPartial {
  double sum;
  RowStats stats;
};

struct RowArgs {
  int64_t rows;
  int64_t columns;
  RowShape shape;
  DType dtype;        // of the inputs and of their gradients
  DType value_dtype;  // of the loss and of its upstream gradient
  LabelType label_type;
  int32_t similar_label;
  ConstRows input[kMaxInputs];    // [rows, columns]
  ConstRows target;               // [rows]
  ConstRows upstream;             // [rows] value_dtype; null means 1
  double upstream_scale;          // 1/rows for a mean
  ConstRows tangent[kMaxInputs];  // double backward: [rows, columns], null means 0
  void* values;  // [rows] value_dtype, or null; in double backward the gradient of `upstream`
  RowPartial* partials;  // one per block of kBlockRows rows, or null
  bool want_stats;
  void* gradient[kMaxInputs];  // [rows, columns] dtype, contiguous; null if not wanted
  bool stream;                 // gradients are too large to be worth a place in the cache
};

// Rows whose losses are added by one thread in one order: the unit of work and of reproducibility.
constexpr int64_t kBlockRows = 64;

inline int64_t block_count(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

SIAM_HOST_DEVICE int64_t row_offset(const RowShape& shape, const RowStrides& strides, int64_t row) {
  if (shape.ndim == 1) return row * strides.step[0];
  int64_t offset = 0;
  for (int d = shape.ndim - 1; d >= 0; --d) {
    const int64_t rest = row / shape.size[d];
    offset += (row - rest * shape.size[d]) * strides.step[d];
    row = rest;
  }
  return offset;
}

// The label as a double, whatever it is stored as; every 64-bit integer other than 0 and 1 stays
// so.
SIAM_HOST_DEVICE Label decode_label(double label, int32_t similar_label) {
  // Arithmetic, since labels are what a branch predictor can't learn.
  const int32_t one = label == 1.0, zero = label == 0.0;
  const int32_t valid = one | zero;
  return static_cast<Label>(valid * (one ^ similar_label) + (1 - valid) * 2);
}

}  // namespace siamcuda
