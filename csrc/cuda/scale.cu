// Host side of the scaling of gradients: those that forward makes are float or double.
#include "cuda/scale.cuh"

namespace siamcuda::cuda {

void launch_scale(const ScaleArgs& args, DType dtype, int multiprocessors, void* stream) {
  if (dtype == DType::kFloat64) {
    launch_scale_typed<double>(args, multiprocessors, native_stream(stream));
  } else {
    launch_scale_typed<float>(args, multiprocessors, native_stream(stream));
  }
}

}  // namespace siamcuda::cuda
