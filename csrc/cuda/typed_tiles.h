// The tile launchers per storage type: one translation unit each, see tiles_typed.inl.
#pragma once

#include "cuda/batch_launch.h"
#include "cuda/tile_launch.h"

namespace siamcuda::cuda {

template <class T>
struct TypedTiles {
  static void run_squared_cdist(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                                TileDevice device, void* stream);
  static void run_norms(const TileMatrix& x, int64_t batch, int64_t dim, TileDevice device,
                        void* stream);
  static void run_panel(const TileArgs& args, DType dtype, void* out, TileDevice device,
                        void* stream);
  static void run_pairs(const TileArgs& tiles, const PairArgs& args, DType dtype, TileDevice device,
                        void* stream);
  static void run_mask(const MaskArgs& args, DType dtype, TileDevice device, void* stream);
  static void run_anchors(const AnchorArgs& args, DType dtype, TileDevice device, void* stream);
  static void run_symmetric(const SymmetricArgs& args, TileDevice device, void* stream);
  static void run_picks(const PicksArgs& args, TileDevice device, void* stream);
  static void run_product(const ProductArgs& args, TileDevice device, void* stream);
};

}  // namespace siamcuda::cuda
