// The CUDA kernels of every operator. The emulator registers the same code for CPU tensors.
#include "ops/loss_op.h"

#if defined(SIAM_EMULATED)
#define SIAM_CUDA_KEY CPU
#else
#define SIAM_CUDA_KEY CUDA
#endif

namespace siamcuda::ops {
namespace {

#define SIAM_CUDA(F) LossOp<F>::Kernels<cuda_backend>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, SIAM_CUDA_KEY, m) { SIAM_FOR_EACH_LOSS(SIAM_CUDA) }

}  // namespace
}  // namespace siamcuda::ops
