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

// Returns make(LEVEL), LEVEL being the namespace of the instruction set in use.
#if defined(__x86_64__)
#define SIAM_RETURN_AT_LEVEL(make)                              \
  const cpu::Level level_in_use = checked_level();              \
  if (level_in_use == cpu::Level::kAvx512) return make(avx512); \
  if (level_in_use == cpu::Level::kAvx2) return make(avx2);     \
  return make(generic);
#else
#define SIAM_RETURN_AT_LEVEL(make) return make(generic);
#endif

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
  SIAM_RETURN_AT_LEVEL(SIAM_LEVEL_FUNCTIONS)
}
#undef SIAM_LEVEL_FUNCTIONS

// The same for one formula over pairs, its parameters erased.
template <class C>
struct PairLevel {
  void (*rows)(const cpu::PairTask<C>&, const void* params, int64_t begin, int64_t end);
  void (*meetings)(const cpu::PairMeetings<C>&, const void* params, int64_t begin, int64_t end);
};
#define SIAM_PAIR_FUNCTIONS(level) {cpu::level::batch_pairs<F, C>, cpu::level::batch_meetings<F, C>}
template <class F, class C>
PairLevel<C> active_pairs() {
  SIAM_RETURN_AT_LEVEL(SIAM_PAIR_FUNCTIONS)
}
#undef SIAM_PAIR_FUNCTIONS

}  // namespace siamcuda::ops
