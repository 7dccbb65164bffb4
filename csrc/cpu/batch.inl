// Everything of the batch losses that one instruction set compiles, in the order of use.
// clang-format off
#include "cpu/simd.inl"
#include "cpu/tiles.inl"
#include "cpu/rescue.inl"
#include "cpu/pairs.inl"
#include "cpu/distances.inl"
#include "cpu/mining.inl"
#include "cpu/triplets.inl"
// clang-format on

#define SIAM_INSTANTIATE(F)                                                                        \
  template void batch_pairs<F, float>(const PairTask<float>&, const F::Params&, int64_t, int64_t); \
  template void batch_pairs<F, double>(const PairTask<double>&, const F::Params&, int64_t, int64_t);
SIAM_FOR_EACH_LOSS(SIAM_INSTANTIATE)
#undef SIAM_INSTANTIATE
#define SIAM_INSTANTIATE(C)                                                                    \
  template TileGeometry tile_geometry<C>(int64_t);                                             \
  template void pack_columns<C>(const Matrix&, const TileGeometry&, const Packed<C>&, int64_t, \
                                int64_t);                                                      \
  template void distances<C>(const DistanceTask<C>&, int64_t, int64_t);                        \
  template void distance_gradients<C>(const DistanceTask<C>&, int64_t, int64_t);               \
  template void anchor_rows<C>(const TripletTask<C>&, int64_t, int64_t);                       \
  template void column_rows<C>(const TripletTask<C>&, int64_t, int64_t);                       \
  template void add_picks<C>(const TripletTask<C>&, const int64_t*, const Pick<C>*, bool, C*,  \
                             int64_t, int64_t);
SIAM_INSTANTIATE(float)
SIAM_INSTANTIATE(double)
#undef SIAM_INSTANTIATE
