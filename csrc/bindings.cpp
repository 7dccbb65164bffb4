// siamcuda._C: every operator as a plain Python function, through the same dispatcher as
// torch.ops.siamcuda but without its argument parsing in Python. Names and defaults are read from
// the operators' schemas.
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/extension.h>

#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "ops/batch_op.h"
#include "ops/cdist.h"
#include "ops/loss_op.h"

#ifndef SIAMCUDA_ARCHITECTURES
#define SIAMCUDA_ARCHITECTURES ""
#endif

namespace py = pybind11;

namespace siamcuda::ops {
namespace {

const c10::FunctionSchema& schema_of(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").schema();
}

py::arg required(const c10::Argument& argument) { return py::arg(argument.name().c_str()); }
py::arg_v optional(const c10::Argument& argument) {
  return py::arg_v(argument.name().c_str(), argument.default_value()
                                                ? torch::jit::toPyObject(*argument.default_value())
                                                : py::none());
}

template <class F, class Op = LossOp<F>>
struct Binder;

template <class F, class Params, class... O, size_t... I>
struct Binder<F, LossOp<F, Params (*)(O...), std::index_sequence<I...>>> {
  using Op = LossOp<F, Params (*)(O...), std::index_sequence<I...>>;

  template <size_t... K>
  static void bind(py::module_& m, std::index_sequence<K...>) {
    constexpr size_t tensors = sizeof...(I), options = sizeof...(O);
    const std::string name = F::kName;
    using Release = py::call_guard<py::gil_scoped_release>;
    {
      const auto& arguments = schema_of(Op::operator_name()).arguments();
      m.def(name.c_str(), &Op::call, required(arguments[I])..., optional(arguments[tensors + K])...,
            optional(arguments[tensors + options]), py::kw_only(),
            optional(arguments[tensors + options + 1]), Release());
    }
    {
      const auto& arguments = schema_of(Op::operator_name("_value_and_grad")).arguments();
      m.def((name + "_value_and_grad").c_str(), &Op::call_value_and_grad, required(arguments[I])...,
            optional(arguments[tensors + K])..., optional(arguments[tensors + options]),
            optional(arguments[tensors + options + 1]), py::kw_only(),
            optional(arguments[tensors + options + 2]), Release());
    }
    if (F::kIsLoss) {
      const auto& arguments = schema_of(Op::operator_name("_stats")).arguments();
      m.def((name + "_stats").c_str(), &Op::call_stats, required(arguments[I])...,
            optional(arguments[tensors + K])..., Release());
    }
  }
  static void bind(py::module_& m) { bind(m, std::index_sequence_for<O...>()); }
};

template <class L, class Op = BatchOp<L>>
struct BatchBinder;

template <class L, class Params, class... O>
struct BatchBinder<L, BatchOp<L, Params (*)(O...)>> {
  using Op = BatchOp<L, Params (*)(O...)>;

  template <size_t... K>
  static void bind(py::module_& m, std::index_sequence<K...>) {
    constexpr size_t options = 4 + sizeof...(O);
    using Release = py::call_guard<py::gil_scoped_release>;
    const auto& arguments = schema_of(Op::operator_name()).arguments();
    m.def(L::name().c_str(), &Op::call, required(arguments[0]), required(arguments[1]),
          optional(arguments[2]), optional(arguments[3]), optional(arguments[4 + K])...,
          optional(arguments[options]), optional(arguments[options + 1]), py::kw_only(),
          optional(arguments[options + 2]), Release());
    m.def((L::name() + "_stats").c_str(), &Op::call_stats, required(arguments[0]),
          required(arguments[1]), optional(arguments[2]), optional(arguments[3]),
          optional(arguments[4 + K])..., optional(arguments[options]), Release());
  }
  static void bind(py::module_& m) { bind(m, std::index_sequence_for<O...>()); }
};

std::vector<std::string> batch_loss_names() {
  std::vector<std::string> names;
#define SIAM_WITH_BATCH_LOSS(L) names.emplace_back(L::name());
  SIAM_FOR_EACH_BATCH_LOSS
#undef SIAM_WITH_BATCH_LOSS
  return names;
}

std::vector<std::string> loss_names() {
  std::vector<std::string> names;
#define SIAM_NAME(F) names.emplace_back(F::kName);
  SIAM_FOR_EACH_LOSS(SIAM_NAME)
#undef SIAM_NAME
  return names;
}

py::dict build_info() {
  std::vector<std::string> compiled, usable;
  for (const cpu::Level level : cpu::compiled_levels()) {
    compiled.emplace_back(cpu::level_name(level));
    if (cpu::supported(level)) usable.emplace_back(cpu::level_name(level));
  }
  py::dict info;
  info["cuda_architectures"] = std::string(SIAMCUDA_ARCHITECTURES);
  info["simd_compiled"] = compiled;
  info["simd_supported"] = usable;
  info["simd"] = std::string(cpu::level_name(cpu::active_level()));
#if defined(__VERSION__)
  info["compiler"] = std::string(__VERSION__);
#endif
  return info;
}

// The same work as an operator's call without the operator: what the benchmark subtracts.
at::Tensor empty_op(const at::Tensor& x1, const at::Tensor& x2) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow(SIAM_STRINGIFY(SIAM_LIBRARY) "::empty_op", "")
                                 .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  return handle.call(x1, x2);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Operators of siamcuda; use them through the siamcuda package.";
#define SIAM_BIND(F) Binder<F>::bind(m);
  SIAM_FOR_EACH_LOSS(SIAM_BIND)
#undef SIAM_BIND
#define SIAM_WITH_BATCH_LOSS(L) BatchBinder<L>::bind(m);
  SIAM_FOR_EACH_BATCH_LOSS
#undef SIAM_WITH_BATCH_LOSS
  m.def("squared_cdist", &call_squared_cdist, py::arg("x1"), py::arg("x2"),
        py::call_guard<py::gil_scoped_release>());
  m.def("batch_loss_names", &batch_loss_names, "Names of the losses over a batch.");
  m.def("empty_op", &empty_op, py::arg("x1"), py::arg("x2"),
        py::call_guard<py::gil_scoped_release>(),
        "Returns a new 0-d tensor and does nothing else: the floor of call overhead.");
  m.def("loss_names", &loss_names, "Names of the operators that have a formula.");
  m.def("build_info", &build_info, "What this build holds and which instruction set is in use.");
}

}  // namespace siamcuda::ops
