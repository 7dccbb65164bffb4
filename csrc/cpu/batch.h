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
// A pair gives `share` of its value to a row that counts it, and dL/d(value of a pair) is
// weight_share · (row_upstream + column_upstream).
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
  double weight_share;
  double row_factor;         // used where row_upstream is null
  double column_factor;      // likewise
  const C* row_upstream;     // [rows] or null
  const C* column_upstream;  // [columns] or null
  bool want_stats;
  double* values;      // [rows] share · Σ over the columns, added up over the chunks
  double* weight_sum;  // [rows] scratch that lives from chunk to chunk
  C* gradient;         // [rows, D] contiguous, or null: Σ_c weight · column until the last chunk
  BatchStats* stats;   // [panels], added up over the chunks
};

// One of two lists of rows that meet: the batch twice, a batch and its ref, or the two of a cdist.
template <class C>
struct MeetingSide {
  Matrix matrix;
  Packed<C> chunk;     // blocks are counted from its first row
  C* gradient;         // [rows, D] contiguous, added to; or null
  double* weight_sum;  // [rows] added to
};

// A round of meetings: the weights of all their pairs, then what they give to both ends. The units
// of work are panels of rows: of each meeting's first block for the weights, of both blocks for the
// gradients. No block is in two meetings of a round, so no two units write to the same rows.
template <class C>
struct Meetings {
  MeetingSide<C> side[2];
  const Meeting* list;
  int64_t count;
  bool joined;         // both sides are one list, so a block may meet itself
  bool squares;        // sums of squares, not of magnitudes
  bool isolated;       // a row that is not finite gives nothing to one that is
  C* weights;          // [count, rows of a block, scratch_step], or null: no gradients
  double* near;        // the same shape: weights of pairs that no product can do
  uint8_t* have_near;  // [count, panels of a block] whether `near` of a panel is filled

  bool same(const Meeting& meeting) const {
    return joined && meeting.first == meeting.second && side[0].chunk.first == side[1].chunk.first;
  }
};

// A loss over pairs, each computed once. The weights of a pair within a block are computed for each
// end, as `pairs` says; a joined pair between blocks once, with a share of 1.
template <class C>
struct PairMeetings {
  Meetings<C> meetings;
  PairTask<C> pairs;  // its chunk is that of side[1]
};

// The gradients of a weighted sum of distances.
template <class C>
struct DistanceMeetings {
  Meetings<C> meetings;
  // dL/d(d²), and the distances themselves: [rows, columns] contiguous, in the type of the
  // matrices.
  const void* weights;
  const void* distances;
};

// Distances of all pairs written out.
template <class C>
struct DistanceTask {
  Matrix x;    // [rows, D]
  Matrix ref;  // [columns, D], what `chunk` was packed from
  Packed<C> chunk;
  bool first_chunk;
  bool last_chunk;
  void* distances;  // [rows, columns] in x.dtype
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
  int64_t row_step;  // columns rounded up to whole vectors of any level
  // [group, row_step] distances, then weights, and a vector behind them; null: not kept.
  C* weights;
  uint8_t* flags;      // [group, row_step]
  C* group_rows;       // [group rounded up, padded]; null if whole
  bool whole;          // the group is the batch, which meets itself
  double factor;       // of the gradients: 2, divided by what the loss is divided by
  C* anchor_gradient;  // [rows, D] added to, or null
  C* column_gradient;  // [columns, D] added to, or null

  // Hard and easy mining.
  int64_t* picked;   // [rows, 2] columns of positive and negative, or -1
  C* picked_weight;  // [rows, 2]

  uint8_t* finite_rows;  // [rows] filled by anchor_rows
  bool row_finite(int64_t i) const { return finite_rows[i] != 0; }
};

// A column and its distance, or -1.
template <class C>
struct Best {
  C value;
  int64_t index;
};

// Hard or easy mining of a batch in itself: groups of rows meet, every two once.
template <class C>
struct MinedTask {
  TripletTask<C> triplets;
  int64_t group;   // rows of a group: whole panels, of rows and of columns
  int64_t groups;  // units are their pairs, first ≤ second
  Best<C>* best;   // [groups, rows, 2] best positive and negative of a row in a group
};

// `params` of a formula F are its own F::Params.
#define SIAM_DECLARE_BATCH(level)                                                                \
  namespace level {                                                                              \
  template <class C>                                                                             \
  TileGeometry tile_geometry(int64_t columns);                                                   \
  template <class C>                                                                             \
  void pack_columns(const Matrix& m, const TileGeometry& g, const Packed<C>& out, int64_t begin, \
                    int64_t end);                                                                \
  template <class F, class C>                                                                    \
  void batch_pairs(const PairTask<C>& task, const void* params, int64_t begin, int64_t end);     \
  template <class F, class C>                                                                    \
  void batch_meetings(const PairMeetings<C>& task, const void* params, int64_t begin,            \
                      int64_t end);                                                              \
  template <class C>                                                                             \
  void meeting_gradients(const Meetings<C>& task, int64_t begin, int64_t end);                   \
  template <class C>                                                                             \
  void finish_meetings(const Meetings<C>& task, int side, int64_t begin, int64_t end);           \
  template <class C>                                                                             \
  void spoil_anchors(const PairTask<C>& task, int64_t begin, int64_t end);                       \
  template <class C>                                                                             \
  void distances(const DistanceTask<C>& task, int64_t begin, int64_t end);                       \
  template <class C>                                                                             \
  void distance_meetings(const DistanceMeetings<C>& task, int64_t begin, int64_t end);           \
  template <class C>                                                                             \
  void anchor_rows(const TripletTask<C>& task, int64_t begin, int64_t end);                      \
  template <class C>                                                                             \
  void anchor_gradients(const TripletTask<C>& task, int64_t begin, int64_t end);                 \
  template <class C>                                                                             \
  void column_rows(const TripletTask<C>& task, int64_t begin, int64_t end);                      \
  template <class C>                                                                             \
  void mine_groups(const MinedTask<C>& task, int64_t begin, int64_t end);                        \
  template <class C>                                                                             \
  void finish_mined(const MinedTask<C>& task, int64_t begin, int64_t end);                       \
  template <class C>                                                                             \
  void add_picks(const TripletTask<C>& task, const int64_t* start, const Pick<C>* entries,       \
                 bool anchors, C* gradient, int64_t begin, int64_t end);                         \
  }
SIAM_DECLARE_BATCH(generic)
#if defined(__x86_64__)
SIAM_DECLARE_BATCH(avx2)
SIAM_DECLARE_BATCH(avx512)
#endif
#undef SIAM_DECLARE_BATCH

}  // namespace siamcuda::cpu
