// Checks and reductions of the losses over a batch, for every backend alike; see batch.h.
#include "ops/batch.h"

#include <ATen/Functions.h>

#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

void check_rows(const std::string& name, const char* argument, const at::Tensor& x) {
  TORCH_CHECK_TYPE(is_supported_dtype(x.scalar_type()), name, ": ", argument,
                   " must be float16, bfloat16, float32 or float64, got ", describe(x));
  TORCH_CHECK_TYPE(x.layout() == at::kStrided, name, ": ", argument,
                   " must be a dense tensor, got layout ", x.layout());
  TORCH_CHECK_VALUE(x.dim() == 2, name, ": ", argument, " must have shape (B, D), got ",
                    describe(x));
}

void check_labels(const std::string& name, const char* argument, const at::Tensor& labels,
                  const char* rows, const at::Tensor& x) {
  TORCH_CHECK_TYPE(at::isIntegralType(labels.scalar_type(), /*includeBool=*/false), name, ": ",
                   argument, " must be integers, one class a row, got ", describe(labels));
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.sym_size(0) == x.sym_size(0), name, ": ", argument,
                    " must have one entry for each row of ", rows, ", got ", describe(labels),
                    " and ", describe(x));
  TORCH_CHECK_VALUE(labels.device() == x.device(), name, ": ", argument,
                    " must be on the device of ", rows, ", got ", describe(labels), " and ",
                    describe(x));
}

// The count that a reduction divides by, or -1.
int divisor_of(BatchReduction reduction) {
  return reduction == BatchReduction::kMean ? 0 : reduction == BatchReduction::kMeanActive ? 1 : -1;
}

// Where the backend has not done it: the total divided, and by how much.
void divide(BatchPass& pass) {
  if (pass.divide_by < 0 || pass.divided) return;
  const at::Tensor divisor = pass.counts[pass.divide_by].clamp_min(1.0);
  pass.total = pass.total / divisor;
  pass.scale = divisor.reciprocal();
}

}  // namespace

void check_batch(const std::string& name, const BatchOperands& o) {
  check_rows(name, "embeddings", o.embeddings);
  check_labels(name, "labels", o.labels, "embeddings", o.embeddings);
  TORCH_CHECK_VALUE(o.ref_embeddings.defined() == o.ref_labels.defined(), name,
                    ": ref_embeddings and ref_labels must be given together, got only ",
                    o.ref_embeddings.defined() ? "ref_embeddings" : "ref_labels");
  if (!o.ref_embeddings.defined()) {
    TORCH_CHECK_VALUE(o.self < 0, name, ": self_offset needs ref_embeddings");
    return;
  }
  check_rows(name, "ref_embeddings", o.ref_embeddings);
  check_labels(name, "ref_labels", o.ref_labels, "ref_embeddings", o.ref_embeddings);
  TORCH_CHECK_TYPE(o.ref_embeddings.scalar_type() == o.embeddings.scalar_type(), name,
                   ": ref_embeddings must have the dtype of embeddings, got ",
                   describe(o.ref_embeddings), " and ", describe(o.embeddings));
  TORCH_CHECK_VALUE(o.ref_embeddings.device() == o.embeddings.device(), name,
                    ": ref_embeddings must be on the device of embeddings, got ",
                    describe(o.ref_embeddings), " and ", describe(o.embeddings));
  TORCH_CHECK_VALUE(o.ref_embeddings.sym_size(1) == o.embeddings.sym_size(1), name,
                    ": ref_embeddings must have as many columns D as embeddings, got ",
                    describe(o.ref_embeddings), " and ", describe(o.embeddings));
  TORCH_CHECK_VALUE(o.self < 0 || o.embeddings.sym_size(0) + o.self <= o.ref_embeddings.sym_size(0),
                    name, ": self_offset ", o.self,
                    " puts rows of embeddings behind the end of ref_embeddings: ",
                    describe(o.embeddings), " and ", describe(o.ref_embeddings));
}

BatchReduction parse_batch_reduction(const std::string& name, std::string_view reduction) {
  if (reduction == "mean") return BatchReduction::kMean;
  if (reduction == "mean_active") return BatchReduction::kMeanActive;
  if (reduction == "sum") return BatchReduction::kSum;
  TORCH_CHECK_VALUE(reduction == "none", name,
                    ": reduction must be 'mean', 'mean_active', 'sum' or 'none', got '", reduction,
                    "'");
  return BatchReduction::kNone;
}

Mining parse_mining(std::string_view mining) {
  if (mining == "all") return Mining::kAll;
  if (mining == "hard") return Mining::kHard;
  if (mining == "semihard") return Mining::kSemihard;
  if (mining == "easy_positive") return Mining::kEasyPositive;
  math::invalid("mining must be 'all', 'hard', 'semihard' or 'easy_positive', got '" +
                std::string(mining) + "'");
}

at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor batch_forward(const BatchBackend& backend, const BatchLoss& loss,
                         const BatchOptions& options, const BatchOperands& operands,
                         std::string_view reduction, std::optional<at::ScalarType> dtype) {
  return batch_value_and_grad(backend, loss, options, operands, {false, false}, reduction,
                              dtype)[0];
}

std::vector<at::Tensor> batch_value_and_grad(const BatchBackend& backend, const BatchLoss& loss,
                                             const BatchOptions& options,
                                             const BatchOperands& operands,
                                             std::array<bool, 2> mask, std::string_view reduction,
                                             std::optional<at::ScalarType> dtype) {
  check_batch(loss.name, operands);
  const BatchReduction kind = parse_batch_reduction(loss.name, reduction);
  BatchPass pass;
  for (int side = 0; side < 2; ++side) pass.gradients[side] = mask[side];
  pass.want_stats = kind == BatchReduction::kMeanActive;
  pass.each_value = kind == BatchReduction::kNone;
  pass.divide_by = divisor_of(kind);
  backend.run(loss, options, operands, pass);
  divide(pass);
  const at::Tensor& value = kind == BatchReduction::kNone ? pass.values : pass.total;
  std::vector<at::Tensor> results{value.to(dtype.value_or(operands.embeddings.scalar_type()))};
  for (int side = 0; side < 2; ++side) {
    if (!mask[side]) continue;
    if (pass.scale.defined()) pass.gradient[side].mul_(pass.scale);
    results.push_back(pass.gradient[side]);
  }
  return results;
}

std::vector<at::Tensor> batch_backward(const BatchBackend& backend, const BatchLoss& loss,
                                       const BatchOptions& options, const at::Tensor& grad,
                                       const BatchOperands& operands, std::array<bool, 2> mask,
                                       std::string_view reduction) {
  check_batch(loss.name, operands);
  const BatchReduction kind = parse_batch_reduction(loss.name, reduction);
  const at::ScalarType type = operands.embeddings.scalar_type();
  BatchPass pass;
  for (int side = 0; side < 2; ++side) pass.gradients[side] = mask[side];
  pass.want_stats = kind == BatchReduction::kMeanActive;
  pass.each_value = kind == BatchReduction::kNone;
  pass.divide_by = divisor_of(kind);
  if (kind == BatchReduction::kNone) {
    TORCH_CHECK_VALUE(grad.dim() == 1 && grad.size(0) == operands.embeddings.size(0), loss.name,
                      ": grad must have the shape of the loss, got ", describe(grad));
    pass.upstream = grad.to(compute_type(type)).contiguous();
  } else {
    TORCH_CHECK_VALUE(grad.dim() == 0, loss.name, ": grad must have the shape of the loss, got ",
                      describe(grad));
  }
  backend.run(loss, options, operands, pass);
  divide(pass);
  std::vector<at::Tensor> results;
  for (int side = 0; side < 2; ++side) {
    if (!mask[side]) continue;
    at::Tensor gradient = pass.gradient[side];
    if (kind != BatchReduction::kNone) {
      const at::Tensor factor = grad.to(at::kDouble);
      gradient.mul_(pass.scale.defined() ? factor * pass.scale : factor);
    }
    results.push_back(gradient.to(type));
  }
  return results;
}

at::Tensor batch_stats(const BatchBackend& backend, const BatchLoss& loss,
                       const BatchOptions& options, const BatchOperands& operands) {
  check_batch(loss.name, operands);
  BatchPass pass;
  pass.want_stats = true;
  backend.run(loss, options, operands, pass);
  return pass.counts;
}

}  // namespace siamcuda::ops
