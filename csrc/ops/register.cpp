// Every operator of the library, made from the list of losses: schemas and kernels per key.
#include <torch/library.h>

#include "math/formulas.h"
#include "ops/batch_op.h"
#include "ops/cdist.h"
#include "ops/loss_op.h"
#include "ops/search.h"

namespace siamcuda::ops {
namespace {

#define SIAM_DEFINE(F) LossOp<F>::define(m);
SIAM_TORCH_LIBRARY(SIAM_LIBRARY, m) {
  SIAM_FOR_EACH_LOSS(SIAM_DEFINE)
  m.def("empty_op(Tensor x1, Tensor x2) -> Tensor");
}

// What a call costs before any work is done: the benchmark's floor.
at::Tensor empty_op(const at::Tensor& x1, const at::Tensor&) { return at::empty({}, x1.options()); }
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("empty_op", empty_op);
}

#define SIAM_META(F) LossOp<F>::Fake::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, Meta, m){SIAM_FOR_EACH_LOSS(SIAM_META)}
#define SIAM_AUTOCAST_CPU(F) LossOp<F>::Autocast<c10::DispatchKey::AutocastCPU>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, AutocastCPU, m){SIAM_FOR_EACH_LOSS(SIAM_AUTOCAST_CPU)}

#define SIAM_AUTOCAST_CUDA(F) LossOp<F>::Autocast<c10::DispatchKey::AutocastCUDA>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, AutocastCUDA, m){SIAM_FOR_EACH_LOSS(SIAM_AUTOCAST_CUDA)}

#define SIAM_AUTOGRAD(F) LossOp<F>::Autograd::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, Autograd, m){SIAM_FOR_EACH_LOSS(SIAM_AUTOGRAD)}

#define SIAM_WITH_BATCH_LOSS(L) BatchOp<L>::define(m);
SIAM_TORCH_LIBRARY_FRAGMENT(SIAM_LIBRARY, m) {
  SIAM_FOR_EACH_BATCH_LOSS
  define_cdist(m);
  define_search(m);
}
#undef SIAM_WITH_BATCH_LOSS
#define SIAM_WITH_BATCH_LOSS(L) BatchOp<L>::Fake::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, Meta, m) {
  SIAM_FOR_EACH_BATCH_LOSS
  implement_cdist_meta(m);
  implement_search_meta(m);
}
#undef SIAM_WITH_BATCH_LOSS
#define SIAM_WITH_BATCH_LOSS(L) BatchOp<L>::Autocast<c10::DispatchKey::AutocastCPU>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, AutocastCPU, m){SIAM_FOR_EACH_BATCH_LOSS}
#undef SIAM_WITH_BATCH_LOSS
#define SIAM_WITH_BATCH_LOSS(L) BatchOp<L>::Autocast<c10::DispatchKey::AutocastCUDA>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, AutocastCUDA, m){SIAM_FOR_EACH_BATCH_LOSS}
#undef SIAM_WITH_BATCH_LOSS
#define SIAM_WITH_BATCH_LOSS(L) BatchOp<L>::Autograd::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, Autograd, m) {
  SIAM_FOR_EACH_BATCH_LOSS
  implement_cdist_autograd(m);
}
#undef SIAM_WITH_BATCH_LOSS

}  // namespace
}  // namespace siamcuda::ops
