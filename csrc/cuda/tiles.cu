// Host side of the CUDA tile engine: picks the storage type, and says what a device can run.
#include "cuda/platform.cuh"
#include "cuda/product_tensor.cuh"
#include "cuda/totals.cuh"
#include "cuda/typed_tiles.h"

namespace siamcuda::cuda {

namespace {

template <class Run>
void with_storage(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat16: return run(TypedTiles<math::Half>());
    case DType::kBFloat16: return run(TypedTiles<math::BFloat16>());
    case DType::kFloat32: return run(TypedTiles<float>());
    case DType::kFloat64: return run(TypedTiles<double>());
  }
}

}  // namespace

void launch_squared_cdist(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                          TileDevice device, void* stream) {
  with_storage(dtype, [&](auto typed) {
    typed.run_squared_cdist(args, dtype, out, out_dtype, device, stream);
  });
}

void launch_norms(const TileMatrix& x, int64_t batch, int64_t dim, DType dtype, TileDevice device,
                  void* stream) {
  with_storage(dtype, [&](auto typed) { typed.run_norms(x, batch, dim, device, stream); });
}

void launch_panel(const TileArgs& tiles, DType dtype, void* out, TileDevice device, void* stream) {
  with_storage(dtype, [&](auto typed) { typed.run_panel(tiles, dtype, out, device, stream); });
}

void launch_pairs(const TileArgs& tiles, const PairArgs& args, DType dtype, TileDevice device,
                  void* stream) {
  with_storage(dtype, [&](auto typed) { typed.run_pairs(tiles, args, dtype, device, stream); });
}

void launch_near(const NearArgs& args, TileDevice device, void* stream) {
  const int64_t tiles = near_tiles(args.batch, args.rows, args.words * 32);
  if (tiles == 0) return;
  SIAM_LAUNCH((near_kernel<0>), Dim3(warp_grid(tiles, device.multiprocessors)), Dim3(kTileThreads),
              0, native_stream(stream), args);
}

void launch_values(const ValuesArgs& args, TileDevice device, void* stream) {
  if (args.rows == 0) return;
  SIAM_LAUNCH((values_kernel<0>), Dim3(warp_grid(args.rows, device.multiprocessors)),
              Dim3(kTileThreads), 0, native_stream(stream), args);
}

void launch_total(const TotalArgs& args, void* stream) {
  SIAM_LAUNCH((total_kernel<0>), Dim3(1), Dim3(kTotalThreads), 0, native_stream(stream), args);
}

void launch_mask(const MaskArgs& args, DType dtype, DType distance_type, TileDevice device,
                 void* stream) {
  with_storage(distance_type, [&](auto typed) { typed.run_mask(args, dtype, device, stream); });
}

void launch_product(const ProductArgs& args, DType dtype, TileDevice device, void* stream) {
  with_storage(dtype, [&](auto typed) { typed.run_product(args, device, stream); });
}

// Distances and weights of half precision are in float.
void launch_anchors(const AnchorArgs& args, DType dtype, TileDevice device, void* stream) {
  if (dtype == DType::kFloat64) {
    TypedTiles<double>::run_anchors(args, dtype, device, stream);
  } else {
    TypedTiles<float>::run_anchors(args, dtype, device, stream);
  }
}

void launch_symmetric(const SymmetricArgs& args, DType dtype, TileDevice device, void* stream) {
  if (dtype == DType::kFloat64) {
    TypedTiles<double>::run_symmetric(args, device, stream);
  } else {
    TypedTiles<float>::run_symmetric(args, device, stream);
  }
}

void launch_picks(const PicksArgs& args, DType dtype, TileDevice device, void* stream) {
  with_storage(dtype, [&](auto typed) { typed.run_picks(args, device, stream); });
}

// Compiled like the tile kernels, and asked how that was.
template <int kUnused = 0>
SIAM_KERNEL(32, 1)
void capability_kernel() {}

int tile_capability(int device) { return usable_capability(capability_kernel<0>, device); }

}  // namespace siamcuda::cuda
