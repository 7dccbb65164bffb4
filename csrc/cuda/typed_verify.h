// The launchers of verification per type of rows: one translation unit each, see verify_typed.inl.
#pragma once

#include "cuda/verify_launch.h"

namespace siamcuda::cuda {

template <class T>
struct TypedVerify {
  static void run_histogram(const SweepArgs& sweep, const HistogramArgs& args, TileDevice device,
                            void* stream);
  static void run_table(const SweepArgs& sweep, const TableArgs& args, TileDevice device,
                        void* stream);
  static void run_intervals(const SweepArgs& sweep, const IntervalArgs& args, TileDevice device,
                            void* stream);
  static void run_ranks(const SweepArgs& sweep, const RankArgs& args, TileDevice device,
                        void* stream);
  static void run_bootstrap(const SweepArgs& sweep, const BootstrapArgs& args, TileDevice device,
                            void* stream);
  static void run_keys(const SweepArgs& sweep, const KeysArgs& args, TileDevice device,
                       void* stream);
};

}  // namespace siamcuda::cuda
