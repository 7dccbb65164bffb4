// The losses over a batch as one instruction set runs them: plain arguments, no torch.
//
// Every function works on panels [begin, end) of rows (TileGeometry::panel_rows each), which one
// thread owns; nothing is shared between panels, so no result depends on the number of threads.
#pragma once

#include <cstdint>

#include "cpu/meetings.h"
#include "cpu/tiles.h"
#include "math/formulas.h"

namespace siamcuda::cpu {

// What `return_stats` counts, per panel of rows.
struct BatchStats {
  int64_t valid;
  int64_t active;
  int64_t collapsed;
  int64_t positives;
  int64_t negatives;
  double positive_distance;
  double negative_distance;
};

// One side of a loss over all pairs: each row against every column, the columns a chunk at a time.
// dL/d(value of a pair) is share · (row_upstream + column_upstream): a pair gives `share` of its
// value to each end that counts it.
template <class C>
struct PairTask {
  Matrix x;    // [rows, D]
  Matrix ref;  // [columns, D], what `chunk` was packed from
  Packed<C> chunk;
  bool first_chunk;
  bool last_chunk;
  const int32_t* row_class;     // [rows]
  const int32_t* column_class;  // [columns]
  int64_t self;                 // the column that is row 0 itself; far negative: none is
  double share;
  double row_factor;         // used where row_upstream is null
  double column_factor;      // likewise
  const C* row_upstream;     // [rows] or null
  const C* column_upstream;  // [columns] or null
  bool want_stats;
  double* values;      // [rows] share · Σ over the columns, added up over the chunks
  double* weight_sum;  // [rows] scratch that lives from chunk to chunk
  C* gradient;         // [rows, D] contiguous, or null: Σ_c weight · column until the last chunk,
                       // then the gradient times `gradient_scale`
  double gradient_scale;
  BatchStats* stats;  // [panels], added up over the chunks
};

// A loss over all pairs of one batch, each pair computed once and its weight used at both ends.
// The units of work are panels of rows: `batch_meetings` makes weights, a unit for every panel of a
// meeting's first block; `meeting_gradients` adds what they give, a unit for every panel of both.
// No block is in two meetings of a round, so no two units write to the same rows.
template <class C>
struct MeetingTask {
  // x and ref are the batch; chunk has the second blocks' rows; share is that of a pair of a block
  // with itself, which is computed for each end.
  PairTask<C> pairs;
  Packed<C> rows;  // the chunk of the first blocks; blocks are counted from the chunk's first row
  const Meeting* meetings;
  int64_t count;       // meetings
  bool squares;        // sums of squares, not of magnitudes
  C* weights;          // [meetings, block, scratch_step] or null
  double* near;        // the same shape: weights of pairs that no product can do
  uint8_t* have_near;  // [meetings, panels of a block] whether `near` of a panel is filled
};

// Distances of all pairs written out, and the gradient of a weighted sum of them.
template <class C>
struct DistanceTask {
  Matrix x;    // [rows, D]
  Matrix ref;  // [columns, D], what `chunk` was packed from
  Packed<C> chunk;
  bool first_chunk;
  bool last_chunk;
  void* distances;  // [rows, columns] in x.dtype: what forward writes
  // Backward: dL/d(d²) and the distances, in x.dtype, element (row, column) at the steps below.
  const void* weights;
  const void* known;
  int64_t row_step;
  int64_t column_step;
  double* weight_sum;  // [rows] scratch
  C* gradient;         // [rows, D]
};

// One end of a mined pair: the row at the other end.
template <class C>
struct Pick {
  int64_t row;
  C weight;  // dL/d(d²)
};

// Triplets of anchors (rows of x) with positives and negatives (rows of ref).
template <class C>
struct TripletTask {
  Matrix x;                     // [rows, D]
  Matrix ref;                   // [columns, D]
  Packed<C> refs;               // all of ref
  int64_t self;                 // the column that is row 0 itself; far negative: none is
  const int32_t* row_class;     // [rows]
  const int32_t* column_class;  // [columns rounded up to row_step]
  const int32_t* row_group;     // [rows] index into group_start, or -1: no column has the class
  const int64_t* group_start;   // [classes + 1]
  const int64_t* members;       // [columns] by class, ascending
  Mining mining;
  math::TripletLoss::Params params;
  const C* upstream;  // [rows] or null, which means 1
  bool weights_wanted;
  double* values;     // [rows] Σ of the anchor's terms
  BatchStats* stats;  // [rows]

  // A group of anchors, for mining all and semihard with gradients.
  int64_t group_first;
  int64_t group_count;
  int64_t row_step;    // columns rounded up to whole vectors of any level
  C* weights;          // [group, row_step] distances, then weights; null: not kept
  uint8_t* flags;      // [group, row_step]
  C* group_rows;       // [group rounded up, padded]
  C* anchor_gradient;  // [rows, D] added to, or null
  C* column_gradient;  // [columns, D] added to, or null

  // Hard and easy mining.
  int64_t* picked;   // [rows, 2] columns of positive and negative, or -1
  C* picked_weight;  // [rows, 2]

  uint8_t* finite_rows;  // [rows] filled by anchor_rows
  bool row_finite(int64_t i) const { return finite_rows[i] != 0; }
};

// `params` of a formula F are its own F::Params.
#define SIAM_DECLARE_BATCH(level)                                                                  \
  namespace level {                                                                                \
  template <class C>                                                                               \
  TileGeometry tile_geometry(int64_t columns);                                                     \
  template <class C>                                                                               \
  void pack_columns(const Matrix& m, const TileGeometry& g, const Packed<C>& out, int64_t begin,   \
                    int64_t end);                                                                  \
  template <class F, class C>                                                                      \
  void batch_pairs(const PairTask<C>& task, const void* params, int64_t begin, int64_t end);       \
  template <class F, class C>                                                                      \
  void batch_meetings(const MeetingTask<C>& task, const void* params, int64_t begin, int64_t end); \
  template <class C>                                                                               \
  void meeting_gradients(const MeetingTask<C>& task, int64_t begin, int64_t end);                  \
  template <class C>                                                                               \
  void finish_meetings(const MeetingTask<C>& task, int64_t begin, int64_t end);                    \
  template <class C>                                                                               \
  void distances(const DistanceTask<C>& task, int64_t begin, int64_t end);                         \
  template <class C>                                                                               \
  void distance_gradients(const DistanceTask<C>& task, int64_t begin, int64_t end);                \
  template <class C>                                                                               \
  void anchor_rows(const TripletTask<C>& task, int64_t begin, int64_t end);                        \
  template <class C>                                                                               \
  void column_rows(const TripletTask<C>& task, int64_t begin, int64_t end);                        \
  template <class C>                                                                               \
  void add_picks(const TripletTask<C>& task, const int64_t* start, const Pick<C>* entries,         \
                 bool anchors, C* gradient, int64_t begin, int64_t end);                           \
  }
SIAM_DECLARE_BATCH(generic)
#if defined(__x86_64__)
SIAM_DECLARE_BATCH(avx2)
SIAM_DECLARE_BATCH(avx512)
#endif
#undef SIAM_DECLARE_BATCH

}  // namespace siamcuda::cpu
