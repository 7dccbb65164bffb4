// squared_cdist as torch operators; see cdist.h.
#include "ops/cdist.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <string>
#include <vector>

#include "ops/batch.h"
#include "ops/loss_op.h"
#include "ops/tensors.h"

namespace siamcuda::ops {

namespace {

constexpr const char* kName = "squared_cdist";
using PairMask = std::array<bool, 2>;

void check(const Tensor& x1, const Tensor& x2) {
  const Tensor* both[] = {&x1, &x2};
  const char* names[] = {"x1", "x2"};
  for (int j = 0; j < 2; ++j) {
    const Tensor& x = *both[j];
    TORCH_CHECK_TYPE(is_supported_dtype(x.scalar_type()), kName, ": ", names[j],
                     " must be float16, bfloat16, float32 or float64, got ", describe(x));
    TORCH_CHECK_TYPE(x.layout() == at::kStrided, kName, ": ", names[j],
                     " must be a dense tensor, got layout ", x.layout());
    TORCH_CHECK_VALUE(x.dim() >= 2, kName, ": ", names[j], " must have shape (..., rows, D), got ",
                      describe(x));
  }
  TORCH_CHECK_TYPE(x1.scalar_type() == x2.scalar_type(), kName,
                   ": x2 must have the dtype of x1, got ", describe(x2), " and ", describe(x1));
  TORCH_CHECK_VALUE(x1.device() == x2.device(), kName, ": x2 must be on the device of x1, got ",
                    describe(x2), " and ", describe(x1));
  TORCH_CHECK_VALUE(x1.sym_size(-1) == x2.sym_size(-1), kName,
                    ": x2 must have as many columns D as x1, got ", describe(x2), " and ",
                    describe(x1));
}

c10::SymDimVector leading(const Tensor& x1, const Tensor& x2) {
  const auto a = x1.sym_sizes(), b = x2.sym_sizes();
  c10::SymDimVector shape;
  const int64_t dims = std::max(x1.dim(), x2.dim()) - 2;
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t i = d - (dims - (x1.dim() - 2)), j = d - (dims - (x2.dim() - 2));
    const c10::SymInt m = i < 0 ? c10::SymInt(1) : a[i], n = j < 0 ? c10::SymInt(1) : b[j];
    TORCH_CHECK_VALUE(m == n || m == 1 || n == 1, kName,
                      ": the leading dimensions of x2 can't be broadcast with those of x1: ",
                      describe(x2), " and ", describe(x1));
    shape.push_back(m == 1 ? n : m);
  }
  return shape;
}

// [batches, rows, D] with the leading dimensions of both.
Tensor flattened(const Tensor& x, c10::SymIntArrayRef shape) {
  c10::SymDimVector full(shape.begin(), shape.end());
  full.push_back(x.sym_size(-2));
  full.push_back(x.sym_size(-1));
  return x.expand_symint(full).reshape_symint(
      {c10::multiply_integers(shape), x.sym_size(-2), x.sym_size(-1)});
}

Tensor forward(const CdistBackend& backend, const Tensor& x1, const Tensor& x2) {
  check(x1, x2);
  auto shape = leading(x1, x2);
  const Tensor a = flattened(x1, shape), b = flattened(x2, shape);
  Tensor out = backend.empty({a.size(0), a.size(1), b.size(1)}, a.options());
  backend.forward(a, b, out);
  shape.push_back(x1.sym_size(-2));
  shape.push_back(x2.sym_size(-2));
  return out.view_symint(shape);
}

std::vector<Tensor> backward(const CdistBackend& backend, const Tensor& grad, const Tensor& x1,
                             const Tensor& x2, const Tensor& distances, PairMask mask) {
  check(x1, x2);
  auto shape = leading(x1, x2);
  const Tensor both[] = {flattened(x1, shape), flattened(x2, shape)};
  const auto matrices = [&](const Tensor& t) {
    return t.to(x1.scalar_type())
        .reshape({both[0].size(0), both[0].size(1), both[1].size(1)})
        .contiguous();
  };
  const Tensor upstream = matrices(grad), known = matrices(distances);
  std::array<Tensor, 2> gradients;
  for (int side = 0; side < 2; ++side) {
    const Tensor& own = both[side];
    if (!mask[side]) continue;
    gradients[side] = at::empty(own.sizes(), own.options().dtype(compute_type(own.scalar_type())));
  }
  backend.backward(both[0], both[1], upstream, known, gradients);
  std::vector<Tensor> results;
  for (int side = 0; side < 2; ++side) {
    if (!mask[side]) continue;
    const Tensor &own = both[side], &input = side == 0 ? x1 : x2;
    c10::SymDimVector full(shape.begin(), shape.end());
    full.push_back(own.sym_size(1));
    full.push_back(own.sym_size(2));
    results.push_back(
        at::sum_to(gradients[side].view_symint(full), input.sym_sizes()).to(input.scalar_type()));
  }
  return results;
}

Tensor forward_meta(const Tensor& x1, const Tensor& x2) {
  check(x1, x2);
  auto shape = leading(x1, x2);
  shape.push_back(x1.sym_size(-2));
  shape.push_back(x2.sym_size(-2));
  return at::empty_symint(shape, x1.options());
}

std::vector<Tensor> backward_meta(const Tensor&, const Tensor& x1, const Tensor& x2, const Tensor&,
                                  PairMask mask) {
  std::vector<Tensor> results;
  if (mask[0]) results.push_back(at::empty_symint(x1.sym_sizes(), x1.options()));
  if (mask[1]) results.push_back(at::empty_symint(x2.sym_sizes(), x2.options()));
  return results;
}

std::vector<Tensor> call_backward(const Tensor& grad, const Tensor& x1, const Tensor& x2,
                                  const Tensor& distances, PairMask mask) {
  static const auto handle =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow(SIAM_STRINGIFY(SIAM_LIBRARY) "::squared_cdist_backward", "")
          .typed<std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     PairMask)>();
  return handle.call(grad, x1, x2, distances, mask);
}

struct Function : torch::autograd::Function<Function> {
  static constexpr bool is_traceable = true;
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x1,
                        const Tensor& x2, torch::autograd::variable_list results) {
    context->set_materialize_grads(false);
    context->save_for_backward({x1, x2, results[0]});
    return results[0];
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    torch::autograd::variable_list result(3);
    if (!grads[0].defined()) return result;
    const auto saved = context->get_saved_variables();
    const PairMask mask{context->needs_input_grad(0), context->needs_input_grad(1)};
    if (at::GradMode::is_enabled()) {
      // A graph of the gradient, by differentiable operators: 2(Σ_j g_ij x_i − Σ_j g_ij y_j).
      const Tensor& g = grads[0];
      for (int side = 0; side < 2; ++side) {
        if (!mask[side]) continue;
        const Tensor w = side == 0 ? g : g.transpose(-2, -1);
        const Tensor full = 2 * (w.sum(-1, true) * saved[side] - w.matmul(saved[1 - side]));
        result[side] = at::sum_to(full, saved[side].sym_sizes());
      }
      return result;
    }
    auto found = call_backward(grads[0], saved[0], saved[1], saved[2], mask);
    size_t at = 0;
    for (int side = 0; side < 2; ++side) {
      if (mask[side]) result[side] = std::move(found[at++]);
    }
    return result;
  }
};

Tensor forward_autograd(const Tensor& x1, const Tensor& x2) {
  torch::autograd::variable_list results;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    results = {call_squared_cdist(x1, x2)};
  }
  const auto tracked = [](const Tensor& t) {
    return t.requires_grad() || torch::autograd::isFwGradDefined(t);
  };
  if (!at::GradMode::is_enabled() || !(tracked(x1) || tracked(x2))) return results[0];
  return Function::apply(x1, x2, std::move(results));
}

}  // namespace

Tensor call_squared_cdist(const Tensor& x1, const Tensor& x2) {
  static const auto handle =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow(SIAM_STRINGIFY(SIAM_LIBRARY) "::squared_cdist", "")
          .typed<Tensor(const Tensor&, const Tensor&)>();
  return handle.call(x1, x2);
}

void define_cdist(torch::Library& m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("squared_cdist(Tensor x1, Tensor x2) -> Tensor", tags);
  m.def(
      "squared_cdist_backward(Tensor grad, Tensor x1, Tensor x2, Tensor distances, "
      "bool[2] output_mask) -> Tensor[]",
      tags);
}
void implement_cdist_meta(torch::Library& m) {
  m.impl(kName, forward_meta);
  m.impl("squared_cdist_backward", backward_meta);
}
void implement_cdist_autograd(torch::Library& m) {
  m.impl(kName, forward_autograd);
  m.impl("squared_cdist_backward", torch::autograd::autogradNotImplementedFallback());
}
void implement_cdist(torch::Library& m, const CdistBackend& (*backend)()) {
  m.impl(kName,
         [backend](const Tensor& x1, const Tensor& x2) { return forward(backend(), x1, x2); });
  m.impl("squared_cdist_backward",
         [backend](const Tensor& grad, const Tensor& x1, const Tensor& x2, const Tensor& distances,
                   PairMask mask) { return backward(backend(), grad, x1, x2, distances, mask); });
}

}  // namespace siamcuda::ops
