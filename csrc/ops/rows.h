// The row engine as torch sees it, with the loss erased: one description per loss, one function per
// pass. Nothing here is a template on the loss, so that adding one costs no copy of this code.
#pragma once

#include <ATen/ATen.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "math/params.h"

namespace siamcuda::ops {

enum class Pass { kRows, kDoubleBackward };

// One loss, its options erased to a pointer that only its own kernels read.
struct LossInfo {
  const char* name;
  int inputs;
  bool has_target;
  bool empty_mean_is_nan;
  bool equal_ranks;
  std::array<std::string, kMaxInputs> argument;  // names of the inputs, for messages
  // Blocks [begin, end) on the CPU at the active SIMD level; the first bad row or -1.
  int64_t (*run_cpu)(Pass pass, const RowArgs& args, const void* params, int64_t begin,
                     int64_t end);
  // Launches the pass; null in a build without CUDA.
  void (*run_cuda)(Pass pass, const RowArgs& args, const void* params, int multiprocessors,
                   void* stream);
};

struct Options {
  const void* params;
  int32_t similar_label;
};

enum class Reduction { kNone, kMean, kSum };

// "none", "mean" or "sum"; anything else is a ValueError that names `op`.
Reduction parse_reduction(const char* op, std::string_view reduction);

struct Operands {
  std::array<at::Tensor, kMaxInputs> input;  // [..., D] each, leading dimensions broadcast
  at::Tensor target;                         // [...], undefined if the loss has none
};

// What a pass fills, each undefined if not wanted.
struct Results {
  at::Tensor values;  // [...] one per row
  at::Tensor total;   // 0-d, the sum over rows times `scale`
  double scale = 1.0;
  at::Tensor stats;                             // [5] float64
  std::array<at::Tensor, kMaxInputs> gradient;  // [..., D] each
};

// Operands as the kernels read them: copies where strides had to be mended.
using Views = c10::SmallVector<at::Tensor, 8>;

// Where a pass runs and who adds the blocks' partial sums up.
struct Backend {
  // Points `args` at the memory of `results`, runs the pass and fills it.
  void (*run)(const LossInfo& loss, const Options& options, Pass pass, RowArgs& args,
              const Operands& operands, const Views& views, const Results& results);
  // An output of many megabytes, uninitialised; the CPU asks for huge pages here.
  at::Tensor (*empty)(at::IntArrayRef sizes, const at::TensorOptions& options);
  // Multiplies gradients that forward made by the upstream gradient of the loss, in place; false,
  // with nothing done, where they must be computed anew.
  bool (*scale)(at::TensorList gradients, const at::Tensor& upstream);
};

const Backend& cpu_backend();
const Backend& cuda_backend();

// The loss: [...] for "none", 0-d otherwise. `dtype` is the loss's own if not that of the inputs.
at::Tensor rows_forward(const Backend& backend, const LossInfo& loss, const Options& options,
                        const Operands& operands, Reduction reduction,
                        std::optional<at::ScalarType> dtype);

// The gradients asked for by `mask`, in order, each in the shape of its input.
std::vector<at::Tensor> rows_backward(const Backend& backend, const LossInfo& loss,
                                      const Options& options, const at::Tensor& grad,
                                      const Operands& operands, const std::vector<bool>& mask,
                                      Reduction reduction);

// The loss and every gradient, from one pass over the inputs; the gradients are those of
// grad_scale times the loss (of its sum for "none").
std::vector<at::Tensor> rows_value_and_grad(const Backend& backend, const LossInfo& loss,
                                            const Options& options, const Operands& operands,
                                            Reduction reduction, double grad_scale,
                                            std::optional<at::ScalarType> dtype);

// Gradients of Σ_j <tangent_j, gradient_j> with respect to grad and to every input.
std::vector<at::Tensor> rows_double_backward(const Backend& backend, const LossInfo& loss,
                                             const Options& options, const at::Tensor& grad,
                                             at::TensorList tangents, const Operands& operands,
                                             const std::vector<bool>& mask, Reduction reduction);

// [5] float64: valid, active, collapsed, mean positive distance, mean negative distance.
at::Tensor rows_stats(const Backend& backend, const LossInfo& loss, const Options& options,
                      const Operands& operands);

// The leading shape of the loss after all checks, on real or symbolic sizes; for fake tensors.
std::vector<c10::SymInt> checked_shape(const LossInfo& loss, const Operands& operands);

}  // namespace siamcuda::ops
