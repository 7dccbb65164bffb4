// Every pair's distance, counted and never stored: plain arguments of the verification sinks.
//
// Rows and columns are sorted by label, so the genuine columns of a row are one range. A set
// against itself takes each pair once: d(i, j) and d(j, i) have equal bits.
#pragma once

#include <cstdint>

#include "cpu/tiles.h"
#include "math/verify.h"

namespace siamcuda::cpu {

using math::Key;
using math::kLowBits;
using math::kSelectBins;
using math::kTableBits;
using math::kTopKeys;
using math::Metric;

// Rows against a chunk of columns. Units of work are `group` panels of rows.
template <class C>
struct SweepTask {
  Matrix x;    // [rows, D]
  Matrix ref;  // [columns, D], what `chunk` was packed from
  Packed<C> chunk;
  Metric metric;
  int64_t group;
  const int64_t* genuine;  // [rows, 2] first and last + 1 of the columns with the row's label
  int64_t diagonal;        // the column that is row 0 itself, if there is one
  bool triangle;           // columns behind a row's own alone
  bool genuine_only;       // a row's genuine columns alone
  bool all_finite;         // no column of the chunk is NaN
};

// A pair that is kept as one of the hardest, by (value, i, j): the value is the distance of an
// impostor pair, minus that of a genuine one.
template <class C>
struct HardPair {
  C value;
  int64_t i, j;
};
template <class C>
struct HardPairs {
  HardPair<C>* heap;  // [most], the last to be kept at the root
  int64_t count;
  int64_t most;
};

// Counts by top key, sums, hardest pairs. [0] is genuine, [1] impostor.
template <class C>
struct HistogramSink {
  static constexpr int kCopies = 4;  // neighbours count apart: one address would serialise them
  uint32_t* genuine;                 // [kTopKeys + 1], NaN last
  uint32_t* impostor;                // [kCopies][kTopKeys + 1]
  double* sums;                      // [rows of panels][2][2] Σd and Σd² of a panel, added to
  HardPairs<C> hard[2];
  const int64_t* row_index;     // [rows] where a row stood before sorting
  const int64_t* column_index;  // [columns]
};

// Counts by a table: see math::table_bin.
struct TableSink {
  const int64_t* table;  // [kTopKeys]
  uint32_t* counts[2];   // [size]
};

// Counts within intervals [low, low + (kSelectBins << shift)).
struct SelectSink {
  const uint64_t* low;  // [intervals]
  const int64_t* shift;
  int64_t intervals;
  uint32_t* counts[2];  // [intervals][kSelectBins]
};

// Per row: the nearest mate; then impostors at most as far, and the nearest of them.
template <class C>
struct RankSink {
  C* mate;          // [rows] NaN at first
  C* impostor;      // [rows] NaN at first
  int64_t* within;  // [rows] impostors at distance ≤ mate
  int64_t self;     // the column that is row 0 itself and no mate; far negative: none is
};

// Counts by table, each pair as often as its identities were drawn in each of kReplicates samples.
struct BootstrapSink {
  static constexpr int kReplicates = math::kReplicates;
  const int64_t* table;  // [kTopKeys]
  const int32_t* row_identity;
  const int32_t* column_identity;
  const uint8_t* drawn;  // [identities][kReplicates]
  int32_t* counts[2];    // [size][kReplicates]
};

#define SIAM_DECLARE_VERIFY(level)                                                                 \
  namespace level {                                                                                \
  template <class C>                                                                               \
  void sweep_histogram(const SweepTask<C>& task, HistogramSink<C>& sink, int64_t begin,            \
                       int64_t end);                                                               \
  template <class C>                                                                               \
  void sweep_table(const SweepTask<C>& task, TableSink& sink, int64_t begin, int64_t end);         \
  template <class C>                                                                               \
  void sweep_select(const SweepTask<C>& task, SelectSink& sink, int64_t begin, int64_t end);       \
  template <class C>                                                                               \
  void sweep_mates(const SweepTask<C>& task, RankSink<C>& sink, int64_t begin, int64_t end);       \
  template <class C>                                                                               \
  void sweep_ranks(const SweepTask<C>& task, RankSink<C>& sink, int64_t begin, int64_t end);       \
  template <class C>                                                                               \
  void sweep_bootstrap(const SweepTask<C>& task, BootstrapSink& sink, int64_t begin, int64_t end); \
  }
SIAM_DECLARE_VERIFY(generic)
#if defined(__x86_64__)
SIAM_DECLARE_VERIFY(avx2)
SIAM_DECLARE_VERIFY(avx512)
#endif
#undef SIAM_DECLARE_VERIFY

}  // namespace siamcuda::cpu
