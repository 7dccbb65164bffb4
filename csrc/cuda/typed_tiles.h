// The tile launchers per storage type: one translation unit each, see tiles_typed.inl.
#pragma once

#include "cuda/tile_launch.h"

namespace siamcuda::cuda {

template <class T>
struct TypedTiles {
  static void run_squared_cdist(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                                TileDevice device, void* stream);
};

}  // namespace siamcuda::cuda
