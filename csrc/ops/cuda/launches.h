// What every CUDA entry point asks of a launch: on which device, and whether it began.
#pragma once

#include <c10/util/Exception.h>

#include "cuda/launch.h"
#include "cuda/tile_launch.h"
#include "ops/cuda/device.h"

// The dispatch key that CUDA entry points register under: the emulator has CPU tensors.
#if defined(SIAM_EMULATED)
#define SIAM_CUDA_KEY CPU
#else
#define SIAM_CUDA_KEY CUDA
#endif

namespace siamcuda::ops {

inline void check_launch(const char* name) {
  const char* error = cuda::launch_error();
  TORCH_CHECK(error == nullptr, name, ": CUDA launch failed: ", error ? error : "");
}

inline cuda::TileDevice device_in_use() {
  const int device = current_device();
  return {cuda::device_multiprocessors(device), cuda::tile_capability(device)};
}

}  // namespace siamcuda::ops
