// One loss of math/formulas.h as torch operators, made from its struct alone:
//
//   NAME                  (inputs, [target], options, reduction, *, dtype) -> Tensor
//   NAME_backward         (grad, inputs, [target], output_mask, options, reduction) -> Tensor[]
//   NAME_double_backward  (grad, tangents, inputs, [target], output_mask, ...) -> Tensor[]
//   NAME_value_and_grad   (inputs, [target], options, reduction, grad_scale, *, dtype) -> Tensor[]
//   NAME_stats            (inputs, [target], options) -> Tensor, for losses
//
// The C++ signature of each is the option types of F::make between its tensors and the rest; the
// template parameter pack I counts the tensors. Every call between operators goes through the
// dispatcher, so that autograd, autocast, compile and fake tensors all see it.
#pragma once

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "math/formulas.h"
#include "ops/kernels.h"
#include "ops/rows.h"

#ifndef SIAM_LIBRARY
#define SIAM_LIBRARY siamcuda
#endif
#define SIAM_STRINGIFY_(x) #x
#define SIAM_STRINGIFY(x) SIAM_STRINGIFY_(x)
// torch pastes the library's name into identifiers, which only one more macro level expands.
#define SIAM_TORCH_LIBRARY(library, m) TORCH_LIBRARY(library, m)
#define SIAM_TORCH_LIBRARY_FRAGMENT(library, m) TORCH_LIBRARY_FRAGMENT(library, m)
#define SIAM_TORCH_LIBRARY_IMPL(library, key, m) TORCH_LIBRARY_IMPL(library, key, m)

namespace siamcuda::ops {

using at::Tensor;
using DTypeOption = std::optional<at::ScalarType>;

// An option as it is kept for backward: a view must not outlive what it looks at.
template <class T>
struct Kept {
  using Type = T;
};
template <>
struct Kept<std::string_view> {
  using Type = std::string;
};

template <size_t>
using TensorArgument = const Tensor&;

// Note [Gradients made in forward]: whether backward may hand out what forward made. Not where the
// graph is kept or a graph of the gradient is asked for, since whoever gets a gradient may write
// into it; nor under tracing. Then they are computed anew.
inline bool may_hand_out(const Tensor& grad) {
  return !at::GradMode::is_enabled() && !torch::autograd::get_current_graph_task_keep_graph() &&
         !at::areAnyTensorSubclassLike({grad});
}

template <class F>
constexpr int kTensors = FirstInputs<F>::kInputs + (F::kHasTarget ? 1 : 0);

template <class F, class Make = decltype(&F::make),
          class Index = std::make_index_sequence<kTensors<F>>>
struct LossOp;

template <class F, class Params, class... O, size_t... I>
struct LossOp<F, Params (*)(O...), std::index_sequence<I...>> {
  static constexpr int kInputs = FirstInputs<F>::kInputs;
  using Mask = std::array<bool, kInputs>;
  using KeptOptions = std::tuple<typename Kept<O>::Type..., std::string>;

  // --- schemas ---------------------------------------------------------------------------------

  static std::string operator_name(const char* suffix = "") {
    return std::string(SIAM_STRINGIFY(SIAM_LIBRARY) "::") + F::kName + suffix;
  }
  static std::string tensors() {
    return std::string(F::kTensors) + (F::kHasTarget ? ", Tensor target" : "");
  }
  static std::string options(bool reduction = true) {
    std::string text;
    if (*F::kOptions) text += std::string(", ") + F::kOptions;
    if (reduction)
      text += std::string(", str reduction=\"") + (F::kIsLoss ? "mean" : "none") + "\"";
    return text;
  }
  static std::string mask() { return ", bool[" + std::to_string(kInputs) + "] output_mask"; }

  static void define(torch::Library& m) {
    const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
    const std::string name = F::kName;
    m.def(
        torch::schema(
            (name + "(" + tensors() + options() + ", *, ScalarType? dtype=None) -> Tensor").c_str(),
            c10::AliasAnalysisKind::FROM_SCHEMA),
        tags);
    m.def((name + "_backward(Tensor grad, " + tensors() + mask() + options() + ") -> Tensor[]")
              .c_str(),
          tags);
    m.def((name + "_double_backward(Tensor grad, Tensor[] tangents, " + tensors() + mask() +
           options() + ") -> Tensor[]")
              .c_str(),
          tags);
    m.def((name + "_value_and_grad(" + tensors() + options() +
           ", float grad_scale=1.0, *, ScalarType? dtype=None) -> Tensor[]")
              .c_str(),
          tags);
    if (F::kIsLoss) {
      m.def((name + "_stats(" + tensors() + options(false) + ") -> Tensor").c_str(), tags);
    }
  }

  // --- typed handles on the dispatcher -----------------------------------------------------------

  using Forward = Tensor(TensorArgument<I>..., O..., std::string_view, DTypeOption);
  using Backward = std::vector<Tensor>(const Tensor&, TensorArgument<I>..., Mask, O...,
                                       std::string_view);
  using DoubleBackward = std::vector<Tensor>(const Tensor&, at::TensorList, TensorArgument<I>...,
                                             Mask, O..., std::string_view);
  using ValueAndGrad = std::vector<Tensor>(TensorArgument<I>..., O..., std::string_view, double,
                                           DTypeOption);
  using Stats = Tensor(TensorArgument<I>..., O...);

  template <class Signature>
  static c10::TypedOperatorHandle<Signature> find(const char* suffix) {
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow(operator_name(suffix).c_str(), "")
        .template typed<Signature>();
  }

  static Tensor call(TensorArgument<I>... t, O... o, std::string_view reduction,
                     DTypeOption dtype) {
    static const auto handle = find<Forward>("");
    return handle.call(t..., o..., reduction, dtype);
  }
  static std::vector<Tensor> call_backward(const Tensor& grad, TensorArgument<I>... t, Mask mask,
                                           O... o, std::string_view reduction) {
    static const auto handle = find<Backward>("_backward");
    return handle.call(grad, t..., mask, o..., reduction);
  }
  static std::vector<Tensor> call_double_backward(const Tensor& grad, at::TensorList tangents,
                                                  TensorArgument<I>... t, Mask mask, O... o,
                                                  std::string_view reduction) {
    static const auto handle = find<DoubleBackward>("_double_backward");
    return handle.call(grad, tangents, t..., mask, o..., reduction);
  }
  static std::vector<Tensor> call_value_and_grad(TensorArgument<I>... t, O... o,
                                                 std::string_view reduction, double grad_scale,
                                                 DTypeOption dtype) {
    static const auto handle = find<ValueAndGrad>("_value_and_grad");
    return handle.call(t..., o..., reduction, grad_scale, dtype);
  }
  static Tensor call_stats(TensorArgument<I>... t, O... o) {
    static const auto handle = find<Stats>("_stats");
    return handle.call(t..., o...);
  }

  // --- kernels of a backend ----------------------------------------------------------------------

  static const LossInfo& info() {
    static const LossInfo loss = loss_info<F>();
    return loss;
  }

  static Params make(O... o) {
    try {
      return F::make(o...);
    } catch (const std::invalid_argument& error) {
      TORCH_CHECK_VALUE(false, F::kName, ": ", error.what());
    }
  }

  static Operands operands(TensorArgument<I>... t) {
    const Tensor* all[] = {&t...};
    Operands result;
    for (int j = 0; j < kInputs; ++j) result.input[j] = *all[j];
    if (F::kHasTarget) result.target = *all[kTensors<F> - 1];
    return result;
  }

  static std::vector<bool> wanted(const Mask& mask) {
    return std::vector<bool>(mask.begin(), mask.end());
  }

  template <const Backend& (*kBackend)()>
  struct Kernels {
    static Tensor forward(TensorArgument<I>... t, O... o, std::string_view reduction,
                          DTypeOption dtype) {
      const Params params = make(o...);
      return rows_forward(kBackend(), info(), {&params, params.similar_label}, operands(t...),
                          parse_reduction(F::kName, reduction), dtype);
    }
    static std::vector<Tensor> backward(const Tensor& grad, TensorArgument<I>... t, Mask mask,
                                        O... o, std::string_view reduction) {
      const Params params = make(o...);
      return rows_backward(kBackend(), info(), {&params, params.similar_label}, grad,
                           operands(t...), wanted(mask), parse_reduction(F::kName, reduction));
    }
    static std::vector<Tensor> double_backward(const Tensor& grad, at::TensorList tangents,
                                               TensorArgument<I>... t, Mask mask, O... o,
                                               std::string_view reduction) {
      const Params params = make(o...);
      return rows_double_backward(kBackend(), info(), {&params, params.similar_label}, grad,
                                  tangents, operands(t...), wanted(mask),
                                  parse_reduction(F::kName, reduction));
    }
    static std::vector<Tensor> value_and_grad(TensorArgument<I>... t, O... o,
                                              std::string_view reduction, double grad_scale,
                                              DTypeOption dtype) {
      const Params params = make(o...);
      return rows_value_and_grad(kBackend(), info(), {&params, params.similar_label},
                                 operands(t...), parse_reduction(F::kName, reduction), grad_scale,
                                 dtype);
    }
    static Tensor stats(TensorArgument<I>... t, O... o) {
      const Params params = make(o...);
      return rows_stats(kBackend(), info(), {&params, params.similar_label}, operands(t...));
    }
    static void implement(torch::Library& m) {
      const std::string name = F::kName;
      m.impl(name.c_str(), forward);
      m.impl((name + "_backward").c_str(), backward);
      m.impl((name + "_double_backward").c_str(), double_backward);
      m.impl((name + "_value_and_grad").c_str(), value_and_grad);
      if (F::kIsLoss) m.impl((name + "_stats").c_str(), stats);
    }
  };

  // --- fake tensors ------------------------------------------------------------------------------

  struct Fake {
    static Tensor value(const Operands& all, std::string_view reduction, DTypeOption dtype) {
      const auto shape = checked_shape(info(), all);
      const bool none = parse_reduction(F::kName, reduction) == Reduction::kNone;
      const auto options = all.input[0].options().dtype(dtype.value_or(all.input[0].scalar_type()));
      return at::empty_symint(none ? c10::SymIntArrayRef(shape) : c10::SymIntArrayRef(), options);
    }
    static std::vector<Tensor> gradients(const Operands& all, const Mask& mask) {
      std::vector<Tensor> result;
      for (int j = 0; j < kInputs; ++j) {
        if (!mask[j]) continue;
        result.push_back(at::empty_symint(all.input[j].sym_sizes(), all.input[j].options()));
      }
      return result;
    }
    static Mask every() {
      Mask mask;
      mask.fill(true);
      return mask;
    }

    static Tensor forward(TensorArgument<I>... t, O... o, std::string_view reduction,
                          DTypeOption dtype) {
      make(o...);
      return value(operands(t...), reduction, dtype);
    }
    static std::vector<Tensor> backward(const Tensor&, TensorArgument<I>... t, Mask mask, O...,
                                        std::string_view) {
      return gradients(operands(t...), mask);
    }
    static std::vector<Tensor> double_backward(const Tensor& grad, at::TensorList,
                                               TensorArgument<I>... t, Mask, O...,
                                               std::string_view) {
      std::vector<Tensor> result = gradients(operands(t...), every());
      result.insert(result.begin(), at::empty_symint(grad.sym_sizes(), grad.options()));
      return result;
    }
    static std::vector<Tensor> value_and_grad(TensorArgument<I>... t, O... o,
                                              std::string_view reduction, double,
                                              DTypeOption dtype) {
      make(o...);
      const Operands all = operands(t...);
      Tensor loss = value(all, reduction, dtype);
      std::vector<Tensor> result = gradients(all, every());
      result.insert(result.begin(), std::move(loss));
      return result;
    }
    static Tensor stats(TensorArgument<I>... t, O... o) {
      make(o...);
      const Operands all = operands(t...);
      checked_shape(info(), all);
      return at::empty({5}, all.input[0].options().dtype(at::kDouble));
    }
    static void implement(torch::Library& m) {
      const std::string name = F::kName;
      m.impl(name.c_str(), forward);
      m.impl((name + "_backward").c_str(), backward);
      m.impl((name + "_double_backward").c_str(), double_backward);
      m.impl((name + "_value_and_grad").c_str(), value_and_grad);
      if (F::kIsLoss) m.impl((name + "_stats").c_str(), stats);
    }
  };

  // --- autograd ----------------------------------------------------------------------------------

  // A Function is handed its results, computed below autograd, in a list: as an argument of its own
  // a result would count as an input. Options travel to backward as one tuple in the saved data.
  static void keep(torch::autograd::AutogradContext* context, const KeptOptions& options) {
    context->saved_data["options"] = options;
  }
  static KeptOptions kept(torch::autograd::AutogradContext* context) {
    return context->saved_data["options"].template to<KeptOptions>();
  }

  template <size_t... K>
  static std::vector<Tensor> backward_with(const Tensor& grad,
                                           const torch::autograd::variable_list& t, Mask mask,
                                           const KeptOptions& options, std::index_sequence<K...>) {
    return call_backward(grad, t[I]..., mask, O(std::get<K>(options))...,
                         std::get<sizeof...(O)>(options));
  }
  template <size_t... K>
  static std::vector<Tensor> double_backward_with(const Tensor& grad, at::TensorList tangents,
                                                  const torch::autograd::variable_list& t,
                                                  Mask mask, const KeptOptions& options,
                                                  std::index_sequence<K...>) {
    return call_double_backward(grad, tangents, t[I]..., mask, O(std::get<K>(options))...,
                                std::get<sizeof...(O)>(options));
  }

  struct ForwardFunction : torch::autograd::Function<ForwardFunction> {
    static constexpr bool is_traceable = true;

    static Tensor forward(torch::autograd::AutogradContext* context, TensorArgument<I>... t,
                          const KeptOptions& options, torch::autograd::variable_list results) {
      context->set_materialize_grads(false);
      torch::autograd::variable_list kept{t...};
      kept.insert(kept.end(), results.begin() + 1, results.end());
      context->save_for_backward(std::move(kept));
      keep(context, options);
      return results[0];
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   torch::autograd::variable_list grads) {
      torch::autograd::variable_list result(kTensors<F> + 2);
      if (!grads[0].defined()) return result;
      Mask mask;
      bool any = false;
      for (int j = 0; j < kInputs; ++j) {
        mask[j] = context->needs_input_grad(j);
        any = any || mask[j];
      }
      if (!any) return result;
      // Unpacked in any case: this is where a modified input is noticed.
      auto saved = context->get_saved_variables();
      if (saved.size() > kTensors<F> && may_hand_out(grads[0])) {
        torch::autograd::variable_list made;
        for (int j = 0; j < kInputs; ++j) {
          if (mask[j]) made.push_back(std::move(saved[kTensors<F> + j]));
        }
        const Backend* backend = backend_of(made[0]);
        if (backend != nullptr && backend->scale(made, grads[0])) {
          size_t i = 0;
          for (int j = 0; j < kInputs; ++j) {
            if (mask[j]) result[j] = std::move(made[i++]);
          }
          return result;
        }
      }
      auto gradients =
          backward_with(grads[0], saved, mask, kept(context), std::index_sequence_for<O...>());
      size_t i = 0;
      for (int j = 0; j < kInputs; ++j) {
        if (mask[j]) result[j] = std::move(gradients[i++]);
      }
      return result;
    }
  };

  struct BackwardFunction : torch::autograd::Function<BackwardFunction> {
    static constexpr bool is_traceable = true;

    static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                  const Tensor& grad, TensorArgument<I>... t,
                                                  Mask mask, const KeptOptions& options,
                                                  torch::autograd::variable_list gradients) {
      context->save_for_backward({grad, t...});
      keep(context, options);
      int64_t bits = 0;
      for (int j = 0; j < kInputs; ++j) bits |= static_cast<int64_t>(mask[j]) << j;
      context->saved_data["mask"] = bits;
      return gradients;
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   torch::autograd::variable_list tangents) {
      auto saved = context->get_saved_variables();
      const Tensor grad = saved[0];
      saved.erase(saved.begin());
      const int64_t bits = context->saved_data["mask"].toInt();
      Mask mask;
      for (int j = 0; j < kInputs; ++j) mask[j] = (bits >> j) & 1;
      auto gradients = double_backward_with(grad, tangents, saved, mask, kept(context),
                                            std::index_sequence_for<O...>());
      torch::autograd::variable_list result(1 + kTensors<F> + 3);
      for (int j = 0; j <= kInputs; ++j) result[j] = std::move(gradients[j]);
      return result;
    }
  };

  static bool needs_graph(std::initializer_list<const Tensor*> tensors) {
    if (!at::GradMode::is_enabled()) return false;
    for (const Tensor* t : tensors) {
      // Forward-mode tangents too: Function refuses them, which beats dropping them.
      if (t->defined() && (t->requires_grad() || torch::autograd::isFwGradDefined(*t))) return true;
    }
    return false;
  }

  // Note [Gradients made in forward]: a loss that is reduced to a number will, as a rule, see one
  // backward with an upstream gradient of 1. So one pass makes the loss and its gradients: each
  // array is read and written once instead of read twice. Backend::scale then brings in the
  // upstream gradient: the CPU looks at it, and does nothing where it is 1; on CUDA, where looking
  // means waiting, a kernel does so. Not in half precision, whose gradients a loss scaler must
  // scale before they are rounded.
  static bool makes_gradients(TensorArgument<I>... t, std::string_view reduction) {
    const Tensor* all[] = {&t...};
    for (int j = 0; j < kInputs; ++j) {
      const Tensor& x = *all[j];
      if (!x.requires_grad() || backend_of(x) == nullptr) return false;
      if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble) return false;
    }
    return reduction != "none" && !at::areAnyTensorSubclassLike({t...});
  }

  struct Autograd {
    static Tensor forward(TensorArgument<I>... t, O... o, std::string_view reduction,
                          DTypeOption dtype) {
      const bool graph = needs_graph({&t...});
      torch::autograd::variable_list results;
      {
        at::AutoDispatchBelowADInplaceOrView below;
        if (graph && makes_gradients(t..., reduction)) {
          results = call_value_and_grad(t..., o..., reduction, 1.0, dtype);
        } else {
          results = {call(t..., o..., reduction, dtype)};
        }
      }
      if (!graph) return results[0];
      return ForwardFunction::apply(
          t..., KeptOptions(typename Kept<O>::Type(o)..., std::string(reduction)),
          std::move(results));
    }
    static std::vector<Tensor> backward(const Tensor& grad, TensorArgument<I>... t, Mask mask,
                                        O... o, std::string_view reduction) {
      std::vector<Tensor> gradients;
      {
        at::AutoDispatchBelowADInplaceOrView below;
        gradients = call_backward(grad, t..., mask, o..., reduction);
      }
      if (!needs_graph({&grad, &t...})) return gradients;
      return BackwardFunction::apply(
          grad, t..., mask, KeptOptions(typename Kept<O>::Type(o)..., std::string(reduction)),
          std::move(gradients));
    }
    // No graph by contract: see siamcuda.value_and_grad.
    static std::vector<Tensor> value_and_grad(TensorArgument<I>... t, O... o,
                                              std::string_view reduction, double grad_scale,
                                              DTypeOption dtype) {
      at::AutoDispatchBelowADInplaceOrView below;
      return call_value_and_grad(t..., o..., reduction, grad_scale, dtype);
    }
    static Tensor stats(TensorArgument<I>... t, O... o) {
      at::AutoDispatchBelowADInplaceOrView below;
      return call_stats(t..., o...);
    }
    static void implement(torch::Library& m) {
      const std::string name = F::kName;
      m.impl(name.c_str(), forward);
      m.impl((name + "_backward").c_str(), backward);
      m.impl((name + "_value_and_grad").c_str(), value_and_grad);
      if (F::kIsLoss) m.impl((name + "_stats").c_str(), stats);
      // Third derivatives: an error when they are asked for, not a silent zero.
      m.impl((name + "_double_backward").c_str(),
             torch::autograd::autogradNotImplementedFallback());
    }
  };

  // --- autocast ----------------------------------------------------------------------------------

  // Half inputs are read in place and computed in float32, which the loss then has. Inputs of
  // different precision meet in float32, as torch's own float32 list has it.
  template <c10::DispatchKey kKey>
  struct Autocast {
    static bool is_half(const Tensor& t) {
      return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
    }
    static std::array<Tensor, kTensors<F>> widened(TensorArgument<I>... t, DTypeOption& dtype) {
      std::array<Tensor, kTensors<F>> all{t...};
      bool same = true, half = false;
      for (int j = 0; j < kInputs; ++j) {
        same = same && all[j].scalar_type() == all[0].scalar_type();
        half = half || is_half(all[j]);
      }
      if (half && !dtype) dtype = at::kFloat;
      if (!same) {
        for (int j = 0; j < kInputs; ++j) {
          if (is_half(all[j])) all[j] = all[j].to(at::kFloat);
        }
      }
      return all;
    }
    static Tensor forward(TensorArgument<I>... t, O... o, std::string_view reduction,
                          DTypeOption dtype) {
      c10::impl::ExcludeDispatchKeyGuard below(kKey);
      const auto all = widened(t..., dtype);
      return call(all[I]..., o..., reduction, dtype);
    }
    static std::vector<Tensor> value_and_grad(TensorArgument<I>... t, O... o,
                                              std::string_view reduction, double grad_scale,
                                              DTypeOption dtype) {
      c10::impl::ExcludeDispatchKeyGuard below(kKey);
      const auto all = widened(t..., dtype);
      return call_value_and_grad(all[I]..., o..., reduction, grad_scale, dtype);
    }
    static Tensor stats(TensorArgument<I>... t, O... o) {
      c10::impl::ExcludeDispatchKeyGuard below(kKey);
      DTypeOption dtype;
      const auto all = widened(t..., dtype);
      return call_stats(all[I]..., o...);
    }
    static void implement(torch::Library& m) {
      const std::string name = F::kName;
      m.impl(name.c_str(), forward);
      m.impl((name + "_value_and_grad").c_str(), value_and_grad);
      if (F::kIsLoss) m.impl((name + "_stats").c_str(), stats);
    }
  };
};

}  // namespace siamcuda::ops
