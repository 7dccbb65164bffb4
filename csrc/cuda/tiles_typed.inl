// Instantiates the tile launchers for one storage type, SIAM_STORAGE.
// Included by one .cu file a type, so that they compile side by side.
#include "cuda/product_tensor.cuh"
#include "cuda/sinks.cuh"
#include "cuda/triplets.cuh"
#include "cuda/typed_tiles.h"

namespace siamcuda::cuda {

template <class T>
void TypedTiles<T>::run_squared_cdist(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                                      TileDevice device, void* stream) {
  launch_squared_cdist_typed<T>(args, dtype, out, out_dtype, device, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_norms(const TileMatrix& x, int64_t batch, int64_t dim, TileDevice device,
                              void* stream) {
  launch_row_norms<T>(x, batch, dim, device.multiprocessors, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_panel(const TileArgs& args, DType dtype, void* out, TileDevice device,
                              void* stream) {
  launch_store_typed<T>(args, dtype, out, true, device, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_pairs(const TileArgs& tiles, const PairArgs& args, DType dtype,
                              TileDevice device, void* stream) {
  launch_pairs_typed<T>(tiles, args, dtype, device, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_mask(const MaskArgs& args, DType dtype, TileDevice device, void* stream) {
  launch_mask_typed<T>(args, dtype, device, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_product(const ProductArgs& args, TileDevice device, void* stream) {
  launch_product_typed<T>(args, device, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_anchors(const AnchorArgs& args, DType dtype, TileDevice device,
                                void* stream) {
  if constexpr (sizeof(T) > 2) launch_anchors_typed<T>(args, dtype, device, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_symmetric(const SymmetricArgs& args, TileDevice device, void* stream) {
  if constexpr (sizeof(T) > 2) launch_symmetric_typed<T>(args, device, native_stream(stream));
}

template <class T>
void TypedTiles<T>::run_picks(const PicksArgs& args, TileDevice device, void* stream) {
  launch_picks_typed<T>(args, device, native_stream(stream));
}

template struct TypedTiles<SIAM_STORAGE>;

}  // namespace siamcuda::cuda
