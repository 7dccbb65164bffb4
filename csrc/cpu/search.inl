// Everything of search that one instruction set compiles, in the order of use.
// clang-format off
#include "cpu/simd.inl"
#include "cpu/tiles.inl"
#include "cpu/nearest.inl"
#include "cpu/screen_tiles.inl"
#include "cpu/codes.inl"
#include "cpu/bits.inl"
// clang-format on

#define SIAM_INSTANTIATE(C)                                                 \
  template void search_directly<C>(const SearchTask<C>&, int64_t, int64_t); \
  template void finish_search<C>(const SearchTask<C>&);                     \
  template void normalize_rows<C>(const Matrix&, C*, int64_t, int64_t);
SIAM_INSTANTIATE(float)
SIAM_INSTANTIATE(double)
#undef SIAM_INSTANTIATE
