// The losses over a batch as torch sees them, with the loss erased: checks, reductions, gradients.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/batch.h"
#include "cuda/batch_launch.h"

namespace siamcuda::ops {

template <class C>
struct PairLevel;

// One loss over pairs or triplets; its parameters are erased to a pointer that its kernels read.
struct BatchLoss {
  std::string name;
  // The CPU's kernels of a loss over pairs; null for triplets.
  PairLevel<float> (*pairs_float)();
  PairLevel<double> (*pairs_double)();
  // The same loss for CUDA's kernels.
  cuda::PairFormula (*formula)(const void* params);
};

struct BatchOperands {
  at::Tensor embeddings;      // [B, D]
  at::Tensor labels;          // [B] integers
  at::Tensor ref_embeddings;  // [R, D], or undefined: the batch meets itself
  at::Tensor ref_labels;      // [R]
  int64_t self = -1;          // with ref: row i is ref row self + i, which it does not meet
};

struct BatchOptions {
  const void* params;
  Mining mining = Mining::kAll;
};

// What a pass is asked for and what it fills. Gradients are in the type of the computation: float32
// for half precision.
struct BatchPass {
  bool gradients[2] = {false, false};  // of embeddings, of ref_embeddings
  bool want_stats = false;
  bool each_value = false;  // every anchor's value is wanted, not only their total
  int divide_by = -1;       // the count that the total is wanted divided by: 0 terms, 1 active
  at::Tensor upstream;      // [B] in the type of the computation, or undefined: 1
  at::Tensor values;        // [B] float64: Σ of an anchor's terms; any split of the total otherwise
  at::Tensor total;         // 0-d float64: Σ values in one order
  at::Tensor gradient[2];   // of Σ upstream·values
  // Whether the total is divided already; then gradients are to be multiplied by `scale`, a 0-d
  // float64, or if it is undefined by nothing.
  bool divided = false;
  at::Tensor scale;
  // 0-d float64 each: terms, active, collapsed, mean positive and mean negative distance. Only the
  // terms, unless want_stats; nothing, if the total is divided already.
  at::Tensor counts;  // [5]
};

struct BatchBackend {
  void (*run)(const BatchLoss& loss, const BatchOptions& options, const BatchOperands& operands,
              BatchPass& pass);
};
const BatchBackend& cpu_batch_backend();
const BatchBackend& cuda_batch_backend();

enum class BatchReduction { kNone, kMean, kMeanActive, kSum };

// Raises for operands that don't fit; on real or fake tensors.
void check_batch(const std::string& name, const BatchOperands& operands);
BatchReduction parse_batch_reduction(const std::string& name, std::string_view reduction);
Mining parse_mining(std::string_view mining);
at::ScalarType compute_type(at::ScalarType type);

at::Tensor batch_forward(const BatchBackend& backend, const BatchLoss& loss,
                         const BatchOptions& options, const BatchOperands& operands,
                         std::string_view reduction, std::optional<at::ScalarType> dtype);
// The loss, then the gradients that the mask names, in the type of the computation.
std::vector<at::Tensor> batch_value_and_grad(const BatchBackend& backend, const BatchLoss& loss,
                                             const BatchOptions& options,
                                             const BatchOperands& operands,
                                             std::array<bool, 2> mask, std::string_view reduction,
                                             std::optional<at::ScalarType> dtype);
// The gradients that the mask names, in the types of the inputs.
std::vector<at::Tensor> batch_backward(const BatchBackend& backend, const BatchLoss& loss,
                                       const BatchOptions& options, const at::Tensor& grad,
                                       const BatchOperands& operands, std::array<bool, 2> mask,
                                       std::string_view reduction);
at::Tensor batch_stats(const BatchBackend& backend, const BatchLoss& loss,
                       const BatchOptions& options, const BatchOperands& operands);

}  // namespace siamcuda::ops
