// From a loss's struct to the kernels compiled for it, with the loss erased.
#pragma once

#include <c10/util/Exception.h>

#include <sstream>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/rows.h"
#include "cuda/launch.h"
#include "math/formulas.h"
#include "ops/rows.h"

namespace siamcuda::ops {

template <class List>
struct InputsOf;
template <class Row, class... Rows>
struct InputsOf<math::RowList<Row, Rows...>> {
  static constexpr int kInputs = Row::kInputs;
};
template <class F>
struct FirstInputs : InputsOf<typename F::Rows> {};

#if !defined(SIAM_EMULATED)
template <class F>
int64_t run_rows_cpu(Pass pass, const RowArgs& args, const void* params, int64_t begin,
                     int64_t end) {
  const auto& typed = *static_cast<const typename F::Params*>(params);
  if (pass == Pass::kDoubleBackward) {
    return cpu::rows_double_backward<F>(args, typed, begin, end);
  }
#if defined(__x86_64__)
  cpu::Level level;
  try {
    level = cpu::active_level();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
  if (level == cpu::Level::kAvx512) return cpu::avx512::rows<F>(args, typed, begin, end);
  if (level == cpu::Level::kAvx2) return cpu::avx2::rows<F>(args, typed, begin, end);
#endif
  return cpu::generic::rows<F>(args, typed, begin, end);
}
#endif

template <class F>
void run_rows_cuda(Pass pass, const RowArgs& args, const void* params, int multiprocessors,
                   void* stream) {
  const auto& typed = *static_cast<const typename F::Params*>(params);
  if (pass == Pass::kDoubleBackward) {
    cuda::launch_rows_double_backward<F>(args, typed, multiprocessors, stream);
  } else {
    cuda::launch_rows<F>(args, typed, multiprocessors, stream);
  }
}

template <class F>
LossInfo loss_info() {
  LossInfo loss{};
  loss.name = F::kName;
  loss.inputs = FirstInputs<F>::kInputs;
  loss.has_target = F::kHasTarget;
  loss.empty_mean_is_nan = F::kEmptyMeanIsNaN;
  loss.equal_ranks = F::kEqualRanks;
  std::istringstream words(F::kTensors);  // "Tensor x1, Tensor x2"
  std::string type, name;
  for (int j = 0; j < loss.inputs; ++j) {
    words >> type >> name;
    if (name.back() == ',') name.pop_back();
    loss.argument[j] = name;
  }
#if !defined(SIAM_EMULATED)
  loss.run_cpu = run_rows_cpu<F>;
#endif
#if defined(SIAMCUDA_WITH_CUDA) || defined(SIAM_EMULATED)
  loss.run_cuda = run_rows_cuda<F>;
#endif
  return loss;
}

// The backend that makes the gradients of a reduced loss on x in forward; null where none does.
inline const Backend* backend_of(const at::Tensor& x) {
#if defined(SIAM_EMULATED)
  return x.is_cpu() ? &cuda_backend() : nullptr;
#else
#if defined(SIAMCUDA_WITH_CUDA)
  if (x.is_cuda()) return &cuda_backend();
#endif
  return x.is_cpu() ? &cpu_backend() : nullptr;
#endif
}

}  // namespace siamcuda::ops
