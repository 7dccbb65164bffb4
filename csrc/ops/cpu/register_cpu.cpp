// The CPU kernels of every operator.
#include "ops/loss_op.h"

namespace siamcuda::ops {
namespace {

#define SIAM_CPU(F) LossOp<F>::Kernels<cpu_backend>::implement(m);
SIAM_TORCH_LIBRARY_IMPL(SIAM_LIBRARY, CPU, m) { SIAM_FOR_EACH_LOSS(SIAM_CPU) }

}  // namespace
}  // namespace siamcuda::ops
