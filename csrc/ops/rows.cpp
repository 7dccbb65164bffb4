// Checks, broadcasting and outputs of the row losses, for every backend alike; see rows.h.
#include "ops/rows.h"

#include <ATen/ExpandUtils.h>
#include <ATen/Functions.h>

#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

bool is_label_dtype(at::ScalarType type) {
  switch (type) {
    case at::kBool:
    case at::kByte:
    case at::kChar:
    case at::kShort:
    case at::kInt:
    case at::kLong:
    case at::kHalf:
    case at::kBFloat16:
    case at::kFloat:
    case at::kDouble: return true;
    default: return false;
  }
}

LabelType label_type_of(at::ScalarType type) {
  switch (type) {
    case at::kBool:
    case at::kByte: return LabelType::kUInt8;
    case at::kChar: return LabelType::kInt8;
    case at::kShort: return LabelType::kInt16;
    case at::kInt: return LabelType::kInt32;
    case at::kLong: return LabelType::kInt64;
    case at::kHalf: return LabelType::kFloat16;
    case at::kBFloat16: return LabelType::kBFloat16;
    case at::kFloat: return LabelType::kFloat32;
    default: return LabelType::kFloat64;
  }
}

// Everything about the operands but their sizes.
void check_kinds(const LossInfo& loss, const Operands& operands) {
  const at::Tensor& first = operands.input[0];
  for (int j = 0; j < loss.inputs; ++j) {
    const at::Tensor& x = operands.input[j];
    TORCH_CHECK_TYPE(is_supported_dtype(x.scalar_type()), loss.name, ": ", loss.argument[j],
                     " must be float16, bfloat16, float32 or float64, got ", describe(x));
    TORCH_CHECK_VALUE(x.dim() >= 1, loss.name, ": ", loss.argument[j],
                      " must have shape (..., D), got ", describe(x));
    TORCH_CHECK_TYPE(x.scalar_type() == first.scalar_type(), loss.name, ": ", loss.argument[j],
                     " must have the dtype of ", loss.argument[0], ", got ", describe(x), " and ",
                     describe(first));
    TORCH_CHECK_VALUE(x.device() == first.device(), loss.name, ": ", loss.argument[j],
                      " must be on the device of ", loss.argument[0], ", got ", describe(x),
                      " and ", describe(first));
    TORCH_CHECK_VALUE(!loss.equal_ranks || x.dim() == first.dim(), loss.name, ": ",
                      loss.argument[j], " must have as many dimensions as ", loss.argument[0],
                      ", got ", describe(x), " and ", describe(first));
    TORCH_CHECK_TYPE(x.layout() == at::kStrided, loss.name, ": ", loss.argument[j],
                     " must be a dense tensor, got layout ", x.layout());
  }
  if (loss.has_target) {
    const at::Tensor& target = operands.target;
    TORCH_CHECK_TYPE(is_label_dtype(target.scalar_type()), loss.name,
                     ": target must be bool, integer or float, got ", describe(target));
    TORCH_CHECK_VALUE(target.device() == first.device(), loss.name,
                      ": target must be on the device of ", loss.argument[0], ", got ",
                      describe(target), " and ", describe(first));
  }
}

template <class Size>
at::ArrayRef<Size> sizes_of(const at::Tensor& t);
template <>
at::ArrayRef<int64_t> sizes_of(const at::Tensor& t) {
  return t.sizes();
}
template <>
at::ArrayRef<c10::SymInt> sizes_of(const at::Tensor& t) {
  return t.sym_sizes();
}

// The broadcast leading shape, for real sizes and for symbolic ones.
template <class Size>
c10::SmallVector<Size, 5> leading_shape(const LossInfo& loss, const Operands& operands) {
  const at::Tensor& first = operands.input[0];
  int64_t leading = 0;
  for (int j = 0; j < loss.inputs; ++j) {
    leading = std::max(leading, operands.input[j].dim() - 1);
    TORCH_CHECK_VALUE(sizes_of<Size>(operands.input[j]).back() == sizes_of<Size>(first).back(),
                      loss.name, ": ", loss.argument[j], " must have as many columns D as ",
                      loss.argument[0], ", got ", describe(operands.input[j]), " and ",
                      describe(first));
  }
  c10::SmallVector<Size, 5> shape(leading, Size(1));
  for (int j = 0; j < loss.inputs; ++j) {
    const auto sizes = sizes_of<Size>(operands.input[j]);
    const int64_t skip = leading - (static_cast<int64_t>(sizes.size()) - 1);
    for (int64_t d = skip; d < leading; ++d) {
      const Size& size = sizes[d - skip];
      if (size == 1) continue;
      TORCH_CHECK_VALUE(shape[d] == 1 || shape[d] == size, loss.name, ": ", loss.argument[j],
                        " can't be broadcast with the inputs before it: ",
                        describe(operands.input[j]), " and ", describe(first));
      shape[d] = size;
    }
  }
  if (loss.has_target) {
    const auto sizes = sizes_of<Size>(operands.target);
    bool same = static_cast<int64_t>(sizes.size()) == leading;
    for (int64_t d = 0; same && d < leading; ++d) same = sizes[d] == shape[d];
    TORCH_CHECK_VALUE(same, loss.name, ": target must have shape ", at::ArrayRef<Size>(shape),
                      ", one label per row, got ", describe(operands.target));
  }
  return shape;
}

// Operands ready for a kernel, and what keeps their memory alive.
struct Prepared {
  RowArgs args{};
  at::DimVector shape;       // leading
  at::DimVector full_shape;  // leading and D
  Views views;               // the operands as the kernels read them
};

struct RowsView {
  const at::Tensor* tensor;
  bool has_columns;
  ConstRows* rows;
};

// Gives every view strides over one common, merged leading shape.
void lay_out(Prepared& prepared, at::ArrayRef<RowsView> views) {
  const int64_t dims = static_cast<int64_t>(prepared.shape.size());
  c10::SmallVector<at::DimVector, 8> strides;
  for (const RowsView& view : views) {
    const at::Tensor* t = view.tensor;
    prepared.views.push_back(*t);
    if (view.has_columns && t->size(-1) > 1 && t->stride(-1) != 1) {
      prepared.views.back() = t->contiguous();
      t = &prepared.views.back();
    }
    view.rows->data = t->const_data_ptr();
    const int64_t own = t->dim() - (view.has_columns ? 1 : 0);
    at::DimVector steps(dims, 0);
    for (int64_t d = 0; d < own; ++d) {
      steps[dims - own + d] = t->size(d) == 1 ? 0 : t->stride(d);
    }
    strides.push_back(std::move(steps));
  }

  RowShape& merged = prepared.args.shape;
  c10::SmallVector<at::DimVector, 8> steps(views.size());
  at::DimVector sizes;
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = prepared.shape[d];
    if (size == 1) continue;
    bool merges = !sizes.empty();
    for (size_t i = 0; merges && i < views.size(); ++i) {
      merges = steps[i].back() == strides[i][d] * size;
    }
    if (merges) {
      sizes.back() *= size;
      for (size_t i = 0; i < views.size(); ++i) steps[i].back() = strides[i][d];
    } else {
      sizes.push_back(size);
      for (size_t i = 0; i < views.size(); ++i) steps[i].push_back(strides[i][d]);
    }
  }
  if (sizes.empty()) {
    sizes.push_back(prepared.args.rows);
    for (auto& step : steps) step.push_back(0);
  }
  if (sizes.size() > kMaxRowDims) {
    // Rare enough for a copy: five or more leading dimensions that no two neighbours share.
    c10::SmallVector<at::Tensor, 8> dense;
    c10::SmallVector<RowsView, 8> dense_views;
    for (const RowsView& view : views) {
      const auto target = at::IntArrayRef(view.has_columns ? prepared.full_shape : prepared.shape);
      dense.push_back(view.tensor->expand(target).contiguous());
    }
    for (size_t i = 0; i < views.size(); ++i) {
      dense_views.push_back({&dense[i], views[i].has_columns, views[i].rows});
    }
    prepared.views.clear();
    lay_out(prepared, dense_views);
    return;
  }
  merged.ndim = static_cast<int32_t>(sizes.size());
  for (size_t d = 0; d < sizes.size(); ++d) {
    merged.size[d] = sizes[d];
    for (size_t i = 0; i < views.size(); ++i) views[i].rows->strides.step[d] = steps[i][d];
  }
}

Prepared prepare(const LossInfo& loss, const Options& options, const Operands& operands,
                 at::ScalarType value_dtype, const at::Tensor& upstream,
                 at::ArrayRef<at::Tensor> tangents) {
  Prepared prepared;
  check_kinds(loss, operands);
  const auto shape = leading_shape<int64_t>(loss, operands);
  prepared.shape.assign(shape.begin(), shape.end());
  prepared.full_shape = prepared.shape;
  prepared.full_shape.push_back(operands.input[0].size(-1));
  const at::ScalarType dtype = operands.input[0].scalar_type();
  TORCH_CHECK_TYPE(
      value_dtype == dtype ||
          (value_dtype == at::kFloat && (dtype == at::kHalf || dtype == at::kBFloat16)),
      loss.name, ": dtype must be that of the inputs, or float32 for half precision, got ",
      value_dtype, " for inputs of ", dtype);

  RowArgs& args = prepared.args;
  args.rows = c10::multiply_integers(prepared.shape);
  args.columns = prepared.full_shape.back();
  args.dtype = dtype_of(dtype);
  args.value_dtype = dtype_of(value_dtype);
  args.similar_label = options.similar_label;
  args.upstream_scale = 1.0;
  c10::SmallVector<RowsView, 8> views;
  for (int j = 0; j < loss.inputs; ++j) {
    views.push_back({&operands.input[j], true, &args.input[j]});
  }
  if (loss.has_target) {
    args.label_type = label_type_of(operands.target.scalar_type());
    views.push_back({&operands.target, false, &args.target});
  }
  if (upstream.defined()) {
    TORCH_CHECK_VALUE(upstream.dim() == 0 || upstream.sizes() == at::IntArrayRef(prepared.shape),
                      loss.name, ": grad must have the shape of the loss, got ",
                      describe(upstream));
    TORCH_CHECK_VALUE(upstream.device() == operands.input[0].device(), loss.name,
                      ": grad must be on the device of ", loss.argument[0], ", got ",
                      describe(upstream));
    views.push_back({&upstream, false, &args.upstream});
  }
  for (size_t j = 0; j < tangents.size(); ++j) {
    if (tangents[j].defined()) views.push_back({&tangents[j], true, &args.tangent[j]});
  }
  lay_out(prepared, views);
  return prepared;
}

// Sums a gradient of the broadcast shape down to that of its input. A sum to one element would be
// split over threads by ATen, whose bits then depend on their number; two steps avoid that.
at::Tensor reduce_to(const at::Tensor& gradient, at::IntArrayRef shape) {
  if (gradient.sizes() == shape) return gradient;
  if (c10::multiply_integers(shape) == 1 && gradient.numel() > 1024) {
    const at::Tensor flat = gradient.reshape({-1});
    const int64_t lanes = 64, whole = flat.numel() / lanes * lanes;
    at::Tensor total = flat.narrow(0, 0, whole).view({-1, lanes}).sum(0).sum();
    if (whole < flat.numel()) total = total + flat.narrow(0, whole, flat.numel() - whole).sum();
    return total.reshape(shape);
  }
  return at::sum_to(gradient, shape);
}

double mean_scale(const LossInfo& loss, Reduction reduction, int64_t rows) {
  if (reduction != Reduction::kMean) return 1.0;
  if (rows > 0) return 1.0 / static_cast<double>(rows);
  return loss.empty_mean_is_nan ? std::numeric_limits<double>::quiet_NaN() : 1.0;
}

// The output of a forward pass: one value a row, or their sum or mean.
at::Tensor add_value(const Prepared& prepared, const Operands& operands, const LossInfo& loss,
                     Reduction reduction, at::ScalarType dtype, Results& results) {
  const auto options = operands.input[0].options().dtype(dtype);
  if (reduction == Reduction::kNone) {
    return results.values = at::empty(prepared.shape, options);
  }
  results.scale = mean_scale(loss, reduction, prepared.args.rows);
  return results.total = at::empty({}, options);
}

void add_gradients(const Backend& backend, const Prepared& prepared, const Operands& operands,
                   const LossInfo& loss, const std::vector<bool>& mask, Results& results) {
  for (int j = 0; j < loss.inputs; ++j) {
    if (!mask[j]) continue;
    results.gradient[j] = backend.empty(prepared.full_shape, operands.input[j].options());
  }
}

std::vector<at::Tensor> reduced_gradients(const Operands& operands, const Results& results) {
  std::vector<at::Tensor> gradients;
  for (int j = 0; j < kMaxInputs; ++j) {
    if (!results.gradient[j].defined()) continue;
    gradients.push_back(reduce_to(results.gradient[j], operands.input[j].sizes()));
  }
  return gradients;
}

}  // namespace

Reduction parse_reduction(const char* op, std::string_view reduction) {
  if (reduction == "mean") return Reduction::kMean;
  if (reduction == "sum") return Reduction::kSum;
  TORCH_CHECK_VALUE(reduction == "none", op, ": reduction must be 'mean', 'sum' or 'none', got '",
                    reduction, "'");
  return Reduction::kNone;
}

std::vector<c10::SymInt> checked_shape(const LossInfo& loss, const Operands& operands) {
  check_kinds(loss, operands);
  const auto shape = leading_shape<c10::SymInt>(loss, operands);
  return {shape.begin(), shape.end()};
}

at::Tensor rows_forward(const Backend& backend, const LossInfo& loss, const Options& options,
                        const Operands& operands, Reduction reduction,
                        std::optional<at::ScalarType> dtype) {
  const at::ScalarType value_dtype = dtype.value_or(operands.input[0].scalar_type());
  Prepared prepared = prepare(loss, options, operands, value_dtype, {}, {});
  Results results;
  const at::Tensor value = add_value(prepared, operands, loss, reduction, value_dtype, results);
  backend.run(loss, options, Pass::kRows, prepared.args, operands, prepared.views, results);
  return value;
}

std::vector<at::Tensor> rows_backward(const Backend& backend, const LossInfo& loss,
                                      const Options& options, const at::Tensor& grad,
                                      const Operands& operands, const std::vector<bool>& mask,
                                      Reduction reduction) {
  Prepared prepared = prepare(loss, options, operands, grad.scalar_type(), grad, {});
  prepared.args.upstream_scale = mean_scale(loss, reduction, prepared.args.rows);
  Results results;
  add_gradients(backend, prepared, operands, loss, mask, results);
  backend.run(loss, options, Pass::kRows, prepared.args, operands, prepared.views, results);
  return reduced_gradients(operands, results);
}

std::vector<at::Tensor> rows_value_and_grad(const Backend& backend, const LossInfo& loss,
                                            const Options& options, const Operands& operands,
                                            Reduction reduction, double grad_scale,
                                            std::optional<at::ScalarType> dtype) {
  const at::ScalarType value_dtype = dtype.value_or(operands.input[0].scalar_type());
  Prepared prepared = prepare(loss, options, operands, value_dtype, {}, {});
  prepared.args.upstream_scale = mean_scale(loss, reduction, prepared.args.rows) * grad_scale;
  Results results;
  const at::Tensor value = add_value(prepared, operands, loss, reduction, value_dtype, results);
  add_gradients(backend, prepared, operands, loss, std::vector<bool>(loss.inputs, true), results);
  backend.run(loss, options, Pass::kRows, prepared.args, operands, prepared.views, results);
  std::vector<at::Tensor> outputs = reduced_gradients(operands, results);
  outputs.insert(outputs.begin(), value);
  return outputs;
}

std::vector<at::Tensor> rows_double_backward(const Backend& backend, const LossInfo& loss,
                                             const Options& options, const at::Tensor& grad,
                                             at::TensorList tangents, const Operands& operands,
                                             const std::vector<bool>& mask, Reduction reduction) {
  std::array<at::Tensor, kMaxInputs> tangent;
  size_t i = 0;
  for (int j = 0; j < loss.inputs; ++j) {
    if (!mask[j]) continue;
    TORCH_CHECK_VALUE(i < tangents.size() && tangents[i].sizes() == operands.input[j].sizes() &&
                          tangents[i].scalar_type() == operands.input[j].scalar_type(),
                      loss.name, ": tangents must match the inputs that output_mask names");
    tangent[j] = tangents[i++];
  }
  Prepared prepared = prepare(loss, options, operands, grad.scalar_type(), grad, tangent);
  prepared.args.upstream_scale = mean_scale(loss, reduction, prepared.args.rows);
  Results results;
  at::Tensor grad_of_grad = at::empty(grad.sizes(), grad.options());
  (reduction == Reduction::kNone ? results.values : results.total) = grad_of_grad;
  add_gradients(backend, prepared, operands, loss, std::vector<bool>(loss.inputs, true), results);
  backend.run(loss, options, Pass::kDoubleBackward, prepared.args, operands, prepared.views,
              results);
  std::vector<at::Tensor> outputs = reduced_gradients(operands, results);
  outputs.insert(outputs.begin(), grad_of_grad);
  return outputs;
}

at::Tensor rows_stats(const Backend& backend, const LossInfo& loss, const Options& options,
                      const Operands& operands) {
  Prepared prepared = prepare(loss, options, operands, operands.input[0].scalar_type(), {}, {});
  Results results;
  results.stats = at::empty({5}, operands.input[0].options().dtype(at::kDouble));
  backend.run(loss, options, Pass::kRows, prepared.args, operands, prepared.views, results);
  return results.stats;
}

}  // namespace siamcuda::ops
