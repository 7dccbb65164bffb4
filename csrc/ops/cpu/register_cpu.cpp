// The CPU kernels of every operator.
#include "ops/batch_op.h"
#include "ops/cdist.h"
#include "ops/loss_op.h"
#include "ops/search.h"

namespace siamcuda::ops {
namespace {

#define SIAM_CPU(F) LossOp<F>::Kernels<cpu_backend>::implement(m);
#define SIAM_WITH_BATCH_LOSS(L) BatchOp<L>::Kernels<cpu_batch_backend>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, CPU, m) {
  SIAM_FOR_EACH_LOSS(SIAM_CPU)
  SIAM_FOR_EACH_BATCH_LOSS
  implement_cdist(m, cpu_cdist_backend);
  implement_search(m, cpu_search_backend);
}

}  // namespace
}  // namespace siamcuda::ops
