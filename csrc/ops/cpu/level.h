// The functions of cpu/batch.h at the instruction set in use.
#pragma once

#include <c10/util/Exception.h>

#include <stdexcept>

#include "cpu/batch.h"
#include "cpu/dispatch.h"

namespace siamcuda::ops {

inline cpu::Level checked_level() {
  try {
    return cpu::active_level();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

template <class C>
struct Level {
  decltype(&cpu::generic::tile_geometry<C>) tile_geometry;
  decltype(&cpu::generic::pack_columns<C>) pack_columns;
  decltype(&cpu::generic::meeting_gradients<C>) meeting_gradients;
  decltype(&cpu::generic::finish_meetings<C>) finish_meetings;
  decltype(&cpu::generic::spoil_anchors<C>) spoil_anchors;
  decltype(&cpu::generic::distances<C>) distances;
  decltype(&cpu::generic::distance_meetings<C>) distance_meetings;
  decltype(&cpu::generic::anchor_rows<C>) anchor_rows;
  decltype(&cpu::generic::anchor_gradients<C>) anchor_gradients;
  decltype(&cpu::generic::column_rows<C>) column_rows;
  decltype(&cpu::generic::mine_groups<C>) mine_groups;
  decltype(&cpu::generic::finish_mined<C>) finish_mined;
  decltype(&cpu::generic::add_picks<C>) add_picks;
};

#define SIAM_LEVEL_FUNCTIONS(level)                                     \
  {                                                                     \
      cpu::level::tile_geometry<C>,     cpu::level::pack_columns<C>,    \
      cpu::level::meeting_gradients<C>, cpu::level::finish_meetings<C>, \
      cpu::level::spoil_anchors<C>,     cpu::level::distances<C>,       \
      cpu::level::distance_meetings<C>, cpu::level::anchor_rows<C>,     \
      cpu::level::anchor_gradients<C>,  cpu::level::column_rows<C>,     \
      cpu::level::mine_groups<C>,       cpu::level::finish_mined<C>,    \
      cpu::level::add_picks<C>}
template <class C>
Level<C> active_level() {
#if defined(__x86_64__)
  const cpu::Level level = checked_level();
  if (level == cpu::Level::kAvx512) return SIAM_LEVEL_FUNCTIONS(avx512);
  if (level == cpu::Level::kAvx2) return SIAM_LEVEL_FUNCTIONS(avx2);
#endif
  return SIAM_LEVEL_FUNCTIONS(generic);
}
#undef SIAM_LEVEL_FUNCTIONS

// The same for one formula over pairs, its parameters erased.
template <class C>
struct PairLevel {
  void (*rows)(const cpu::PairTask<C>&, const void* params, int64_t begin, int64_t end);
  void (*meetings)(const cpu::PairMeetings<C>&, const void* params, int64_t begin, int64_t end);
};
template <class F, class C>
PairLevel<C> active_pairs() {
#if defined(__x86_64__)
  const cpu::Level level = checked_level();
  if (level == cpu::Level::kAvx512) {
    return {cpu::avx512::batch_pairs<F, C>, cpu::avx512::batch_meetings<F, C>};
  }
  if (level == cpu::Level::kAvx2) {
    return {cpu::avx2::batch_pairs<F, C>, cpu::avx2::batch_meetings<F, C>};
  }
#endif
  return {cpu::generic::batch_pairs<F, C>, cpu::generic::batch_meetings<F, C>};
}

}  // namespace siamcuda::ops
