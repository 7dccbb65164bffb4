// Everything of the batch losses that one instruction set compiles, in the order of use.
// clang-format off
#include "cpu/simd.inl"
#include "cpu/tiles.inl"
#include "cpu/rescue.inl"
#include "cpu/pairs.inl"
#include "cpu/meetings.inl"
#include "cpu/distances.inl"
#include "cpu/mining.inl"
#include "cpu/triplets.inl"
#include "cpu/mined.inl"
// clang-format on

#define SIAM_INSTANTIATE_FOR(F, C)                                                    \
  template void batch_pairs<F, C>(const PairTask<C>&, const void*, int64_t, int64_t); \
  template void batch_meetings<F, C>(const PairMeetings<C>&, const void*, int64_t, int64_t);
#define SIAM_INSTANTIATE(F)      \
  SIAM_INSTANTIATE_FOR(F, float) \
  SIAM_INSTANTIATE_FOR(F, double)
SIAM_FOR_EACH_LOSS(SIAM_INSTANTIATE)
#undef SIAM_INSTANTIATE
#undef SIAM_INSTANTIATE_FOR
#define SIAM_INSTANTIATE(C)                                                                    \
  template TileGeometry tile_geometry<C>(int64_t);                                             \
  template void pack_columns<C>(const Matrix&, const TileGeometry&, const Packed<C>&, int64_t, \
                                int64_t);                                                      \
  template void meeting_gradients<C>(const Meetings<C>&, int64_t, int64_t);                    \
  template void finish_meetings<C>(const Meetings<C>&, int, int64_t, int64_t);                 \
  template void spoil_anchors<C>(const PairTask<C>&, int64_t, int64_t);                        \
  template void distances<C>(const DistanceTask<C>&, int64_t, int64_t);                        \
  template void distance_meetings<C>(const DistanceMeetings<C>&, int64_t, int64_t);            \
  template void anchor_rows<C>(const TripletTask<C>&, int64_t, int64_t);                       \
  template void anchor_gradients<C>(const TripletTask<C>&, int64_t, int64_t);                  \
  template void column_rows<C>(const TripletTask<C>&, int64_t, int64_t);                       \
  template void mine_groups<C>(const MinedTask<C>&, int64_t, int64_t);                         \
  template void finish_mined<C>(const MinedTask<C>&, int64_t, int64_t);                        \
  template void add_picks<C>(const TripletTask<C>&, const int64_t*, const Pick<C>*, bool, C*,  \
                             int64_t, int64_t);
SIAM_INSTANTIATE(float)
SIAM_INSTANTIATE(double)
#undef SIAM_INSTANTIATE
