// One loss over a batch as torch operators, made from a paired loss's struct or from the triplets:
//
//   NAME                 (embeddings, labels, ref_embeddings?, ref_labels?, options, self_offset,
//                         reduction, *, dtype) -> Tensor
//   NAME_value_and_grad  (the same, output_mask) -> Tensor[]   gradients in the compute type
//   NAME_backward        (grad, the same, output_mask) -> Tensor[]
//   NAME_stats           (the same without reduction) -> Tensor
//   NAME_composite       (the same) -> Tensor   plain PyTorch, for double backward; set from Python
//
// Any paired loss with a target is a loss over all pairs of a batch: adding one adds both.
#pragma once

#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "math/formulas.h"
#include "ops/batch.h"
#include "ops/loss_op.h"
#if !defined(SIAM_EMULATED)
#include "ops/cpu/level.h"
#endif

namespace siamcuda::ops {

template <class F>
struct BatchPairs {
  using Params = typename F::Params;
  static std::string name() { return std::string("batch_") + F::kName; }
  static std::string options() { return F::kOptions; }
  static constexpr auto make = &F::make;
  static BatchOptions erased(const Params& params) { return {&params}; }
  static const BatchLoss& loss() {
    static const BatchLoss loss{name(),
#if !defined(SIAM_EMULATED)
                                active_pairs<F, float>, active_pairs<F, double>,
#else
                                nullptr, nullptr,
#endif
                                cuda::pair_formula<F>};
    return loss;
  }
};

struct BatchTriplets {
  struct Params : math::TripletLoss::Params {
    Mining mining;
  };
  static std::string name() { return "batch_triplet_loss"; }
  static std::string options() {
    return "float margin=0.2, str mining=\"all\", bool squared=True, bool soft=False";
  }
  static Params make(double margin, std::string_view mining, bool squared, bool soft) {
    return {math::TripletLoss::make(margin, squared, soft), parse_mining(mining)};
  }
  static BatchOptions erased(const Params& params) {
    return {static_cast<const math::TripletLoss::Params*>(&params), params.mining};
  }
  static const BatchLoss& loss() {
    static const BatchLoss loss{name(), nullptr, nullptr, nullptr};
    return loss;
  }
};

using MaybeTensor = std::optional<Tensor>;

template <class L, class Make = decltype(+L::make)>
struct BatchOp;

template <class L, class Params, class... O>
struct BatchOp<L, Params (*)(O...)> {
  using Mask = std::array<bool, 2>;
  using KeptOptions = std::tuple<typename Kept<O>::Type..., int64_t, std::string>;

  static std::string operator_name(const char* suffix = "") {
    return std::string(SIAM_STRINGIFY(SIAM_LIBRARY) "::") + L::name() + suffix;
  }

  static void define(torch::Library& m) {
    const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
    const std::string tensors =
        "Tensor embeddings, Tensor labels, Tensor? ref_embeddings=None, Tensor? ref_labels=None, ";
    const std::string plain =
        "Tensor embeddings, Tensor labels, Tensor? ref_embeddings, Tensor? ref_labels, ";
    const std::string options = L::options() + ", int self_offset=-1";
    const std::string reduction = ", str reduction=\"mean\"";
    const auto def = [&](const std::string& suffix, const std::string& rest) {
      m.def(torch::schema((L::name() + suffix + rest).c_str(), c10::AliasAnalysisKind::FROM_SCHEMA),
            tags);
    };
    def("", "(" + tensors + options + reduction + ", *, ScalarType? dtype=None) -> Tensor");
    def("_value_and_grad", "(" + plain + "bool[2] output_mask, " + options + reduction +
                               ", *, ScalarType? dtype=None) -> Tensor[]");
    def("_backward",
        "(Tensor grad, " + plain + "bool[2] output_mask, " + options + reduction + ") -> Tensor[]");
    def("_stats", "(" + tensors + options + ") -> Tensor");
    def("_composite", "(" + tensors + options + reduction + ") -> Tensor");
  }

  using Forward = Tensor(const Tensor&, const Tensor&, const MaybeTensor&, const MaybeTensor&, O...,
                         int64_t, std::string_view, DTypeOption);
  using ValueAndGrad = std::vector<Tensor>(const Tensor&, const Tensor&, const MaybeTensor&,
                                           const MaybeTensor&, Mask, O..., int64_t,
                                           std::string_view, DTypeOption);
  using Backward = std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                       const MaybeTensor&, const MaybeTensor&, Mask, O..., int64_t,
                                       std::string_view);
  using Stats = Tensor(const Tensor&, const Tensor&, const MaybeTensor&, const MaybeTensor&, O...,
                       int64_t);
  using Composite = Tensor(const Tensor&, const Tensor&, const MaybeTensor&, const MaybeTensor&,
                           O..., int64_t, std::string_view);

  template <class Signature>
  static c10::TypedOperatorHandle<Signature> find(const char* suffix) {
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow(operator_name(suffix).c_str(), "")
        .template typed<Signature>();
  }
  static Tensor call(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                     const MaybeTensor& ref_labels, O... o, int64_t self,
                     std::string_view reduction, DTypeOption dtype) {
    static const auto handle = find<Forward>("");
    return handle.call(x, labels, ref, ref_labels, o..., self, reduction, dtype);
  }
  static Tensor call_stats(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                           const MaybeTensor& ref_labels, O... o, int64_t self) {
    static const auto handle = find<Stats>("_stats");
    return handle.call(x, labels, ref, ref_labels, o..., self);
  }

  static Params make(O... o) {
    try {
      return L::make(o...);
    } catch (const std::invalid_argument& error) {
      TORCH_CHECK_VALUE(false, L::name(), ": ", error.what());
    }
  }
  static BatchOperands operands(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                                const MaybeTensor& ref_labels, int64_t self) {
    return {x, labels, ref.value_or(Tensor()), ref_labels.value_or(Tensor()), self};
  }

  // --- kernels of a backend ----------------------------------------------------------------------

  template <const BatchBackend& (*kBackend)()>
  struct Kernels {
    static Tensor forward(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                          const MaybeTensor& ref_labels, O... o, int64_t self,
                          std::string_view reduction, DTypeOption dtype) {
      const Params params = make(o...);
      return batch_forward(kBackend(), L::loss(), L::erased(params),
                           operands(x, labels, ref, ref_labels, self), reduction, dtype);
    }
    static std::vector<Tensor> value_and_grad(const Tensor& x, const Tensor& labels,
                                              const MaybeTensor& ref, const MaybeTensor& ref_labels,
                                              Mask mask, O... o, int64_t self,
                                              std::string_view reduction, DTypeOption dtype) {
      const Params params = make(o...);
      return batch_value_and_grad(kBackend(), L::loss(), L::erased(params),
                                  operands(x, labels, ref, ref_labels, self), mask, reduction,
                                  dtype);
    }
    static std::vector<Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& labels,
                                        const MaybeTensor& ref, const MaybeTensor& ref_labels,
                                        Mask mask, O... o, int64_t self,
                                        std::string_view reduction) {
      const Params params = make(o...);
      return batch_backward(kBackend(), L::loss(), L::erased(params), grad,
                            operands(x, labels, ref, ref_labels, self), mask, reduction);
    }
    static Tensor stats(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                        const MaybeTensor& ref_labels, O... o, int64_t self) {
      const Params params = make(o...);
      return batch_stats(kBackend(), L::loss(), L::erased(params),
                         operands(x, labels, ref, ref_labels, self));
    }
    static void implement(torch::Library& m) {
      m.impl(L::name().c_str(), forward);
      m.impl((L::name() + "_value_and_grad").c_str(), value_and_grad);
      m.impl((L::name() + "_backward").c_str(), backward);
      m.impl((L::name() + "_stats").c_str(), stats);
    }
  };

  // --- fake tensors ------------------------------------------------------------------------------

  struct Fake {
    static Tensor forward(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                          const MaybeTensor& ref_labels, O... o, int64_t self,
                          std::string_view reduction, DTypeOption dtype) {
      make(o...);
      check_batch(L::name(), operands(x, labels, ref, ref_labels, self));
      const bool none = parse_batch_reduction(L::name(), reduction) == BatchReduction::kNone;
      const auto options = x.options().dtype(dtype.value_or(x.scalar_type()));
      return none ? at::empty_symint({x.sym_size(0)}, options) : at::empty({}, options);
    }
    static std::vector<Tensor> gradients(const Tensor& x, const MaybeTensor& ref, Mask mask,
                                         bool compute) {
      std::vector<Tensor> result;
      for (int side = 0; side < 2; ++side) {
        if (!mask[side]) continue;
        const Tensor& of = side == 0 ? x : *ref;
        const auto type = compute ? compute_type(of.scalar_type()) : of.scalar_type();
        result.push_back(at::empty_symint(of.sym_sizes(), of.options().dtype(type)));
      }
      return result;
    }
    static std::vector<Tensor> value_and_grad(const Tensor& x, const Tensor& labels,
                                              const MaybeTensor& ref, const MaybeTensor& ref_labels,
                                              Mask mask, O... o, int64_t self,
                                              std::string_view reduction, DTypeOption dtype) {
      std::vector<Tensor> result = gradients(x, ref, mask, true);
      result.insert(result.begin(),
                    forward(x, labels, ref, ref_labels, o..., self, reduction, dtype));
      return result;
    }
    static std::vector<Tensor> backward(const Tensor&, const Tensor& x, const Tensor&,
                                        const MaybeTensor& ref, const MaybeTensor&, Mask mask, O...,
                                        int64_t, std::string_view) {
      return gradients(x, ref, mask, false);
    }
    static Tensor stats(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                        const MaybeTensor& ref_labels, O... o, int64_t self) {
      make(o...);
      check_batch(L::name(), operands(x, labels, ref, ref_labels, self));
      return at::empty({5}, x.options().dtype(at::kDouble));
    }
    static void implement(torch::Library& m) {
      m.impl(L::name().c_str(), forward);
      m.impl((L::name() + "_value_and_grad").c_str(), value_and_grad);
      m.impl((L::name() + "_backward").c_str(), backward);
      m.impl((L::name() + "_stats").c_str(), stats);
    }
  };

  // --- autograd ----------------------------------------------------------------------------------

  // Note [Gradients of a batch]: a loss reduced to a number makes its gradients while it has the
  // distances, 4B²D FLOPs in all. Backward hands them out where nobody can ask again, as the paired
  // losses do (see Note [Gradients made in forward]), and otherwise scales a copy, so that it may
  // run any number of times. reduction="none" and traced calls compute them in backward. A graph of
  // the gradient is made by plain PyTorch operators, which alone build B×B.
  struct Function : torch::autograd::Function<Function> {
    static constexpr bool is_traceable = true;

    static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x,
                          const Tensor& labels, const MaybeTensor& ref,
                          const MaybeTensor& ref_labels, const KeptOptions& options,
                          torch::autograd::variable_list results) {
      context->set_materialize_grads(false);
      torch::autograd::variable_list kept{x, labels, ref.value_or(Tensor()),
                                          ref_labels.value_or(Tensor())};
      kept.insert(kept.end(), results.begin() + 1, results.end());
      context->save_for_backward(std::move(kept));
      context->saved_data["options"] = options;
      return results[0];
    }

    template <size_t... K>
    static torch::autograd::variable_list gradients(const Tensor& grad,
                                                    const torch::autograd::variable_list& saved,
                                                    Mask mask, const KeptOptions& options,
                                                    std::index_sequence<K...>) {
      const MaybeTensor ref = saved[2].defined() ? MaybeTensor(saved[2]) : std::nullopt;
      const MaybeTensor labels = saved[3].defined() ? MaybeTensor(saved[3]) : std::nullopt;
      constexpr size_t n = sizeof...(O);
      if (at::GradMode::is_enabled()) {
        static const auto composite = find<Composite>("_composite");
        const Tensor loss =
            composite.call(saved[0], saved[1], ref, labels, O(std::get<K>(options))...,
                           std::get<n>(options), std::get<n + 1>(options));
        torch::autograd::variable_list inputs;
        for (int side = 0; side < 2; ++side) {
          if (mask[side]) inputs.push_back(saved[2 * side]);
        }
        auto found = torch::autograd::grad({loss}, inputs, {grad.to(loss.scalar_type())},
                                           /*retain_graph=*/true, /*create_graph=*/true,
                                           /*allow_unused=*/true);
        for (size_t j = 0; j < found.size(); ++j) {
          if (!found[j].defined()) found[j] = at::zeros_like(inputs[j]);
        }
        return found;
      }
      static const auto backward = find<Backward>("_backward");
      return backward.call(grad, saved[0], saved[1], ref, labels, mask, O(std::get<K>(options))...,
                           std::get<n>(options), std::get<n + 1>(options));
    }

    // The gradient that forward made of a side; those of both sides, or of the only one that could
    // be asked for.
    static const Tensor& made(const torch::autograd::variable_list& saved, int side) {
      return saved[saved.size() == 6 ? 4 + side : 4];
    }

    // Half precision has gradients in float32 to be rounded: those are copies anyway.
    static bool hand_out(const torch::autograd::variable_list& saved, Mask mask, const Tensor& grad,
                         torch::autograd::variable_list& result) {
      if (!may_hand_out(grad)) return false;
      torch::autograd::variable_list wanted;
      for (int side = 0; side < 2; ++side) {
        if (!mask[side]) continue;
        wanted.push_back(made(saved, side));
        if (wanted.back().scalar_type() != saved[0].scalar_type()) return false;
      }
      const Backend* backend = backend_of(wanted[0]);
      if (backend == nullptr || !backend->scale(wanted, grad)) return false;
      for (int side = 0; side < 2; ++side) {
        if (mask[side]) result[2 * side] = made(saved, side);
      }
      return true;
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   torch::autograd::variable_list grads) {
      torch::autograd::variable_list result(6);
      if (!grads[0].defined()) return result;
      const auto saved = context->get_saved_variables();
      const Mask mask{context->needs_input_grad(0),
                      saved[2].defined() && context->needs_input_grad(2)};
      if (!mask[0] && !mask[1]) return result;
      if (saved.size() > 4 && !at::GradMode::is_enabled()) {
        if (hand_out(saved, mask, grads[0], result)) return result;
        for (int side = 0; side < 2; ++side) {
          if (!mask[side]) continue;
          result[2 * side] = (made(saved, side) * grads[0]).to(saved[2 * side].scalar_type());
        }
        return result;
      }
      auto found = gradients(grads[0], saved, mask,
                             context->saved_data["options"].template to<KeptOptions>(),
                             std::index_sequence_for<O...>());
      size_t at = 0;
      for (int side = 0; side < 2; ++side) {
        if (mask[side]) result[2 * side] = std::move(found[at++]);
      }
      return result;
    }
  };

  static bool needs_graph(const Tensor& x, const MaybeTensor& ref) {
    if (!at::GradMode::is_enabled()) return false;
    const auto tracked = [](const Tensor& t) {
      return t.requires_grad() || torch::autograd::isFwGradDefined(t);
    };
    return tracked(x) || (ref && tracked(*ref));
  }

  struct Autograd {
    static Tensor forward(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                          const MaybeTensor& ref_labels, O... o, int64_t self,
                          std::string_view reduction, DTypeOption dtype) {
      torch::autograd::variable_list results;
      const bool graph = needs_graph(x, ref);
      {
        at::AutoDispatchBelowADInplaceOrView below;
        const bool traced = at::areAnyTensorSubclassLike({x, labels});
        if (graph && reduction != "none" && !traced) {
          static const auto handle = find<ValueAndGrad>("_value_and_grad");
          const Mask mask{x.requires_grad(), ref && ref->requires_grad()};
          results = handle.call(x, labels, ref, ref_labels, mask, o..., self, reduction, dtype);
        } else {
          results = {call(x, labels, ref, ref_labels, o..., self, reduction, dtype)};
        }
      }
      if (!graph) return results[0];
      return Function::apply(
          x, labels, ref, ref_labels,
          KeptOptions(typename Kept<O>::Type(o)..., self, std::string(reduction)),
          std::move(results));
    }
    static Tensor stats(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                        const MaybeTensor& ref_labels, O... o, int64_t self) {
      at::AutoDispatchBelowADInplaceOrView below;
      return call_stats(x, labels, ref, ref_labels, o..., self);
    }
    static void implement(torch::Library& m) {
      m.impl(L::name().c_str(), forward);
      m.impl((L::name() + "_stats").c_str(), stats);
      const auto refuse = [&](const char* suffix) {
        m.impl((L::name() + suffix).c_str(), torch::autograd::autogradNotImplementedFallback());
      };
      refuse("_value_and_grad");
      refuse("_backward");
    }
  };

  // Half inputs are read in place and computed in float32, which the loss then has.
  template <c10::DispatchKey kKey>
  struct Autocast {
    static Tensor forward(const Tensor& x, const Tensor& labels, const MaybeTensor& ref,
                          const MaybeTensor& ref_labels, O... o, int64_t self,
                          std::string_view reduction, DTypeOption dtype) {
      c10::impl::ExcludeDispatchKeyGuard below(kKey);
      const auto half = [](const Tensor& t) {
        return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
      };
      Tensor rows = x;
      MaybeTensor refs = ref;
      if ((half(x) || (ref && half(*ref))) && !dtype) dtype = at::kFloat;
      if (ref && ref->scalar_type() != x.scalar_type()) {
        if (half(x)) rows = x.to(at::kFloat);
        if (half(*ref)) refs = ref->to(at::kFloat);
      }
      return call(rows, labels, refs, ref_labels, o..., self, reduction, dtype);
    }
    static void implement(torch::Library& m) { m.impl(L::name().c_str(), forward); }
  };
};

}  // namespace siamcuda::ops

// The losses over pairs are those of the list of losses that have a target.
#define SIAM_BATCH_PAIRS(F)                              \
  if constexpr (F::kHasTarget) {                         \
    SIAM_WITH_BATCH_LOSS(::siamcuda::ops::BatchPairs<F>) \
  }
#define SIAM_FOR_EACH_BATCH_LOSS       \
  SIAM_FOR_EACH_LOSS(SIAM_BATCH_PAIRS) \
  SIAM_WITH_BATCH_LOSS(::siamcuda::ops::BatchTriplets)
