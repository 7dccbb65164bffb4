// Counting the distances of all pairs on CUDA, as host code sees it: arguments, how a sweep is
// divided, launchers. No torch and no CUDA headers; `stream` is a cudaStream_t.
//
// Rows and columns are sorted by label, so the genuine columns of a row are one range. A launch
// takes some rows against some columns; it adds to counters of 64 bits, which are integers: what
// it leaves depends on no order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/tile_launch.h"
#include "math/verify.h"

namespace siamcuda::cuda {

using Counter = unsigned long long;

constexpr int kMoments = 4;  // Σd and Σd² of genuine and of impostor pairs

// --- how a sweep is divided ----------------------------------------------------------------------

// The workspace that these lead to has less than 64 MiB.
struct SweepLimits {
  int64_t rows = int64_t{1} << 20;    // or columns of a launch: norms of them have at most 8 MiB
  int64_t tiles = int64_t{1} << 18;   // of a launch: sums of them have 8 MiB
  int64_t keys = int64_t{1} << 19;    // that are in memory together, and up to 6 integers of each
  int64_t copied = int64_t{1} << 20;  // elements of rows
};

struct SweepPlan {
  int64_t rows;     // of one launch
  int64_t columns;  // likewise
};

// Depends on the shape alone, and so does the order of the sums.
inline SweepPlan sweep_plan(int64_t rows, int64_t columns, const SweepLimits& limits = {}) {
  SweepPlan plan{};
  plan.columns = std::min(columns, limits.rows);
  const int64_t across =
      std::max<int64_t>(plan.columns / kTileColumns + (plan.columns % kTileColumns != 0), 1);
  const int64_t down = std::max<int64_t>(limits.tiles / across, 1) * kTileRows;
  plan.rows = std::min({rows, limits.rows, down});
  return plan;
}

// Rows that are copied, and whose keys are stored.
inline SweepPlan keys_plan(int64_t rows, int64_t columns, int64_t dim,
                           const SweepLimits& limits = {}) {
  SweepPlan plan{};
  plan.columns = std::min(columns, limits.keys);
  const int64_t most = std::min(limits.keys / std::max<int64_t>(plan.columns, 1),
                                limits.copied / std::max<int64_t>(dim, 1));
  plan.rows = std::min(rows, std::max<int64_t>(most, 1));
  return plan;
}

// --- a launch ------------------------------------------------------------------------------------

struct SweepArgs {
  TileMatrix rows;     // of this launch, with norms
  TileMatrix columns;  // likewise
  int64_t dim;
  int64_t first_row;         // of this launch among all rows
  int64_t first_column;      // likewise
  const int64_t* positions;  // [rows of the launch] their numbers among all rows, if not in turn
  const int64_t* genuine;    // [all rows, 2] first and last + 1 of the columns of a row's label
  int64_t diagonal;          // the column that is row 0 itself, if there is one
  bool triangle;             // columns behind a row's own alone
  bool genuine_only;
  math::Metric metric;
};

// Counts by top key, NaN last, [2, kTopKeys + 1] of genuine and impostor pairs. Σd and Σd² of both.
// Of each row the least key of an impostor, and the least kInfinityKey - key of a mate, that is the
// farthest: what its hardest pairs are found by.
struct HistogramArgs {
  Counter* counts;
  double* partials;  // [tiles, kMoments] zeros
  double* moments;   // [kMoments] added to
  void* nearest;     // [all rows] keys, NaN at first; or null
  void* farthest;    // likewise
};
void launch_histogram(const SweepArgs& sweep, const HistogramArgs& args, DType dtype,
                      TileDevice device, void* stream);

// Counts [2, size] by a table [kTopKeys]: see math::table_bin.
struct TableArgs {
  const int64_t* table;
  Counter* counts;
  int64_t size;
};
void launch_table(const SweepArgs& sweep, const TableArgs& args, DType dtype, TileDevice device,
                  void* stream);

// Counts [2, intervals, kSelectBins] within intervals of keys: see math::Interval.
struct IntervalArgs {
  const int64_t* low;    // [intervals]
  const int64_t* shift;  // [intervals]
  int64_t intervals;
  Counter* counts;
};
void launch_intervals(const SweepArgs& sweep, const IntervalArgs& args, DType dtype,
                      TileDevice device, void* stream);

// Per row the nearest mate; in a second pass impostors at most as far, and the nearest of them.
struct RankArgs {
  bool mates;
  void* mate;       // [all rows], NaN at first
  void* impostor;   // likewise
  Counter* within;  // [all rows]
  int64_t self;     // the column that is row 0 itself and no mate; far negative: none is
};
void launch_ranks(const SweepArgs& sweep, const RankArgs& args, DType dtype, TileDevice device,
                  void* stream);

// Counts [2, size, kReplicates] by table, each pair as often as its identities were drawn.
struct BootstrapArgs {
  const int64_t* table;
  const int32_t* row_identity;     // [all rows]
  const int32_t* column_identity;  // [all columns]
  const uint8_t* drawn;            // [identities, kReplicates]
  Counter* counts;
  int64_t size;
};
void launch_bootstrap(const SweepArgs& sweep, const BootstrapArgs& args, DType dtype,
                      TileDevice device, void* stream);

// Keys of one kind of pair, [rows of the launch, columns of the launch]; of others a NaN's.
struct KeysArgs {
  void* keys;
  bool genuine;
  bool farthest;  // kInfinityKey - key
};
void launch_keys(const SweepArgs& sweep, const KeysArgs& args, DType dtype, TileDevice device,
                 void* stream);

}  // namespace siamcuda::cuda
