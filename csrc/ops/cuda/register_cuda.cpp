// The CUDA kernels of every operator. The emulator registers the same code for CPU tensors.
#include "ops/batch_op.h"
#include "ops/cdist.h"
#include "ops/cuda/launches.h"
#include "ops/loss_op.h"
#include "ops/search.h"

namespace siamcuda::ops {
namespace {

#define SIAM_CUDA(F) LossOp<F>::Kernels<cuda_backend>::implement(m);
#define SIAM_WITH_BATCH_LOSS(L) BatchOp<L>::Kernels<cuda_batch_backend>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, SIAM_CUDA_KEY, m) {
  SIAM_FOR_EACH_LOSS(SIAM_CUDA)
  SIAM_FOR_EACH_BATCH_LOSS
  implement_cdist(m, cuda_cdist_backend);
  implement_search(m, cuda_search_backend);
}

}  // namespace
}  // namespace siamcuda::ops
