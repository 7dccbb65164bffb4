// Scaling of gradients as host code sees it. No torch and no CUDA headers; `stream` is a
// cudaStream_t.
#pragma once

#include <cstdint>

#include "math/params.h"

namespace siamcuda::cuda {

// The gradients of one loss and the upstream gradient, all of one type.
struct ScaleArgs {
  void* gradient[kMaxInputs];  // null where there is none
  int64_t count[kMaxInputs];   // elements, side by side
  const void* upstream;        // one element, on the device
};

// Multiplies the gradients by the upstream gradient: one kernel, or none for no elements.
void launch_scale(const ScaleArgs& args, DType dtype, int multiprocessors, void* stream);

}  // namespace siamcuda::cuda
