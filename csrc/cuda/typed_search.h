// The search launchers per type of rows: one translation unit each, see search_typed.inl.
#pragma once

#include "cuda/search_launch.h"

namespace siamcuda::cuda {

template <class T>
struct TypedSearch {
  static void run_screen(const ScreenArgs& args, TileDevice device, void* stream);
  static void run_scan(const ScreenArgs& args, TileDevice device, void* stream);
  static void run_round(const RoundArgs& args, TileDevice device, void* stream);
  static void run_select(const SelectArgs& args, void* stream);
  static void run_within(const WithinArgs& args, void* stream);
  static void run_sort(const SortArgs& args, int64_t longest, TileDevice device, void* stream);
  static void run_unit_rows(const UnitArgs& args, TileDevice device, void* stream);
  static void run_root(const void* x, void* out, int64_t count, TileDevice device, void* stream);
};

}  // namespace siamcuda::cuda
