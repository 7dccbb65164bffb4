// Host side of the CUDA tile engine: picks the storage type, and says what a device can run.
#include "cuda/platform.cuh"
#include "cuda/typed_tiles.h"

namespace siamcuda::cuda {

void launch_squared_cdist(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                          TileDevice device, void* stream) {
  const auto run = [&](auto typed) {
    typed.run_squared_cdist(args, dtype, out, out_dtype, device, stream);
  };
  switch (dtype) {
    case DType::kFloat16: return run(TypedTiles<math::Half>());
    case DType::kBFloat16: return run(TypedTiles<math::BFloat16>());
    case DType::kFloat32: return run(TypedTiles<float>());
    case DType::kFloat64: return run(TypedTiles<double>());
  }
}

// Compiled like the tile kernels, and asked how that was.
template <int kUnused = 0>
SIAM_KERNEL(32, 1)
void capability_kernel() {}

int tile_capability(int device) { return usable_capability(capability_kernel<0>, device); }

}  // namespace siamcuda::cuda
