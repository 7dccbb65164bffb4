// Instantiates the tile launchers for one storage type, SIAM_STORAGE.
// Included by one .cu file a type, so that they compile side by side.
#include "cuda/tiles.cuh"
#include "cuda/typed_tiles.h"

namespace siamcuda::cuda {

template <class T>
void TypedTiles<T>::run_squared_cdist(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                                      TileDevice device, void* stream) {
  launch_squared_cdist_typed<T>(args, dtype, out, out_dtype, device, native_stream(stream));
}

template struct TypedTiles<SIAM_STORAGE>;

}  // namespace siamcuda::cuda
