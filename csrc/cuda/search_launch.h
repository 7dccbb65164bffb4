// Exact search on CUDA as host code sees it: arguments, launch shapes and launchers.
// No torch and no CUDA headers; `stream` is a cudaStream_t.
//
// Some queries meet some rows at a time. Screening sets a bit for each pair that may be near
// enough; a second launch computes those pairs directly and keeps the nearest, or all within a
// bound. What a query accepts is read from its list, which the last rows have tightened: nothing
// else goes from launch to launch, and nothing to the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cuda/tile_launch.h"

namespace siamcuda::cuda {

// Of the rows of a gallery. Queries are float for 16-bit rows, else like the rows; distances are of
// that type too, and int32_t for bits.
enum class RowType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64, kBits };

inline int row_bytes(RowType type) {
  switch (type) {
    case RowType::kBits: return 1;
    case RowType::kFloat16:
    case RowType::kBFloat16: return 2;
    case RowType::kFloat32: return 4;
    case RowType::kFloat64: return 8;
  }
  return 8;
}
inline bool is_half(RowType type) { return row_bytes(type) == 2; }
inline int distance_bytes(RowType type) { return type == RowType::kFloat64 ? 8 : 4; }

constexpr int kSearchThreads = 128;
constexpr int kSearchBlocks = 4;       // of an SM, at least what is resident
constexpr int kPairLanes = 4;          // that compute a pair directly
constexpr int kBatchRows = 4096;       // whose bits a block reads at once: a word a thread
constexpr int kRoundPairs = 128;       // computed before the queue is looked at
constexpr int kQueueEntries = 1792;    // of a query in one block's memory: 2 blocks fit on sm_75
constexpr int kSortEntries = 2048;     // sorted at once, a power of two
constexpr int kListEntries = 1024;     // most of a list that a block keeps
constexpr int kFewQueries = 4;         // for which tiles would be empty but for a row or four
constexpr int64_t kFirstRows = 512;    // of a gallery: nothing is known, all are computed directly
constexpr int64_t kGrowth = 3;         // times what is known, so that few of them pass
constexpr int64_t kMaxRows = 1 << 20;  // norms of them have at most 8 MiB
constexpr int64_t kMaxQueries = 4096;
constexpr int64_t kMaskBytes = int64_t{16} << 20;
constexpr int64_t kRunBytes = int64_t{24} << 20;

inline int64_t pieces_of(int64_t n, int64_t size) { return n / size + (n % size != 0); }
inline int64_t mask_words(int64_t rows) { return pieces_of(rows, kTileColumns) * 4; }

// --- how a search is divided ---------------------------------------------------------------------

struct SearchPlan {
  int64_t queries;     // taken together
  int64_t first_rows;  // taken together where nothing is known yet
  int64_t rows;        // at most taken together: a multiple of kTileColumns
};

// `k` 0: all within a bound. The workspace that it leads to has less than 64 MiB: a mask, entries
// of runs, norms; but for lists that are larger by themselves, of which it has one.
inline SearchPlan search_plan(int64_t queries, int64_t dim, int64_t k, RowType type) {
  SearchPlan plan{};
  plan.queries = std::min(std::max<int64_t>(queries, 1), kMaxQueries);
  const int64_t tile = kTileColumns;
  if (is_half(type)) {  // queries are rounded for screening
    const int64_t bytes = 2 * std::max<int64_t>(dim, 1);
    plan.queries = std::min(plan.queries, std::max<int64_t>(kMaskBytes / bytes, 1));
  }
  plan.first_rows = queries <= kFewQueries ? kBatchRows : kFirstRows;
  if (k <= kListEntries) {
    plan.first_rows = std::max(plan.first_rows, pieces_of(2 * k, tile) * tile);
    plan.rows = std::min(kMaskBytes * 8 / plan.queries / tile * tile, kMaxRows);
    if (k == 0) plan.first_rows = plan.rows;
  } else {
    // Every row has a place in the workspace: as many rows as the list has entries, and more.
    const int64_t entry = distance_bytes(type) + 8;
    const int64_t rows =
        std::min(std::max(pieces_of(3 * k, kListEntries), int64_t{8}), kMaxRows / kListEntries) *
        kListEntries;
    plan.rows = plan.first_rows = rows;
    plan.queries = std::min(plan.queries, std::max<int64_t>(kRunBytes / entry / (k + rows), 1));
  }
  plan.first_rows = std::min(plan.first_rows, plan.rows);
  return plan;
}

// Rows to take next, of `left`, where this call has seen some. What other calls have seen does not
// count: their lists may be empty all the same.
inline int64_t rows_to_take(const SearchPlan& plan, int64_t seen, int64_t left) {
  const int64_t known = std::min(seen, kMaxRows);
  const int64_t wanted =
      std::max(plan.first_rows, pieces_of(kGrowth * known, kTileColumns) * kTileColumns);
  return std::min(left, std::min(wanted, plan.rows));
}

// --- screening -----------------------------------------------------------------------------------

// Note [Screening]. With S = |x|² + |y|², the expanded form is within eps S of d² (Note [Error
// bounds] in math/tiles.h), and the computed direct sum is at least (1 − g) d², g = (⌈D/16⌉ + 6) u:
// each term has the roundings of its difference, of at most ⌈D/16⌉ additions and of 4 halves. So a
// pair may be dropped where S − 2 x·y − slack S > growth · t for the bound t of its query, which is
// x·y < ((1 − slack)|x|² − growth · t) / 2 + (1 − slack)|y|² / 2. Slack is 5 % more than eps, for
// second orders, and 8 u: the operations of this comparison err by 3 u S + 2 u growth t at most.
// Growth is 1 / (1 − g) and 16 u more. Underflow adds 2^-126 to a product at most, and less to a
// square of the direct sum: D 2^-120 on the side of the bound covers both. Where x stands for a
// query q whose elements were rounded, |q − x| ≤ r, and d(q, y) ≥ d(x, y) − r: the bound is
// (sqrt(growth · t) + r)². Norms that are too large for all this, or NaN, drop nothing, and nor
// does a product that is NaN.
struct ScreenRule {
  double slack, growth, underflow;
  double largest;  // of one norm
};

inline ScreenRule screen_rule(math::TileEngine engine, int64_t dim) {
  const bool wide = engine == math::TileEngine::kFma64;
  const double u = wide ? 0x1p-53 : 0x1p-24;
  const double eps = math::tile_error_bound(engine, dim);
  const double g = (static_cast<double>(pieces_of(dim, math::kDirectLanes)) + 6) * u;
  const double never = std::numeric_limits<double>::infinity();
  return {eps < 0.05 ? 1.05 * eps + 8 * u : never, g < 0.25 ? (1 + 16 * u) / (1 - g) : never,
          static_cast<double>(dim) * (wide ? 0x1p-1000 : 0x1p-120),
          math::tile_largest_sum(engine) / 2};
}

// The lists of queries, ordered by (distance, position).
struct NearestLists {
  void* distances;     // [queries, k]
  int64_t* positions;  // [queries, k], -1 where a list has no more
  int64_t k;           // 0: `bound` is what every query accepts
  double bound;
};

struct ScreenArgs {
  TileMatrix queries;     // of the type of the rows, with norms
  TileMatrix rows;        // with norms
  const void* residuals;  // [queries] |q − x| where x was rounded, or null
  int64_t dim;
  NearestLists lists;
  void* bounds;    // [queries] scratch
  unsigned* mask;  // [queries, words] bit r % 32 of word r / 32 for row r
  int64_t words;   // mask_words(rows)
};
// On tiles: two launches. No norms for bits.
void launch_screen(const ScreenArgs& args, RowType type, TileDevice device, void* stream);

// For kFewQueries queries: computes every pair directly, at the rate of memory. Queries are those
// of launch_select; norms and bounds are not used.
void launch_scan(const ScreenArgs& args, RowType type, TileDevice device, void* stream);

// Queries in 16 bits, and how far they are from what they were.
struct RoundArgs {
  const float* queries;  // [queries, dim] contiguous
  int64_t count;
  int64_t dim;
  void* rounded;     // [queries, dim]
  float* residuals;  // [queries]
};
void launch_round(const RoundArgs& args, RowType type, TileDevice device, void* stream);

// --- selection -----------------------------------------------------------------------------------

// A block takes a part of the rows for one query: `splits` of them share a query where queries are
// few, or where no list fits into a block.
struct SelectLaunch {
  int64_t splits;
  int64_t split_rows;  // a multiple of 32
  int64_t run;         // entries that a split leaves; where splits is 1 and lists are short, none:
  bool in_place;       // the list itself is updated
  int64_t items;
  unsigned grid;
};

inline SelectLaunch select_launch(int64_t queries, int64_t rows, int64_t k, int multiprocessors) {
  SelectLaunch launch{};
  const int64_t resident = static_cast<int64_t>(std::max(multiprocessors, 1)) * kSearchBlocks;
  const bool large = k > kListEntries;
  const int64_t unit = large ? kListEntries : 1024;
  const int64_t most = std::max<int64_t>(pieces_of(rows, unit), 1);
  const int64_t wanted =
      large ? most : std::min(most, std::max<int64_t>(resident / std::max<int64_t>(queries, 1), 1));
  launch.split_rows =
      std::max<int64_t>(pieces_of(pieces_of(std::max<int64_t>(rows, 1), wanted), unit), 1) * unit;
  launch.splits = std::max<int64_t>(pieces_of(rows, launch.split_rows), 1);
  launch.in_place = !large && k > 0 && launch.splits == 1;
  launch.run = launch.in_place ? 0 : std::min(k, launch.split_rows);
  launch.items = queries * launch.splits;
  launch.grid = static_cast<unsigned>(std::min(launch.items, resident));
  return launch;
}

// Updates lists; or, where launch.in_place is false, writes list and runs of a query side by side,
// k + splits · run entries to sort.
struct SelectArgs {
  TileMatrix queries;  // with norms for cosine
  TileMatrix rows;     // likewise
  int64_t dim;
  const unsigned* mask;  // [queries, words], or null: every row
  int64_t words;
  bool cosine;    // a pair with a row of zeros has squared distance 2
  int64_t first;  // position of row 0
  NearestLists lists;
  SelectLaunch launch;
  void* run_distances;     // [queries, k + splits · run], or null
  int64_t* run_positions;  // likewise
};
void launch_select(const SelectArgs& args, RowType type, TileDevice device, void* stream);

// Counts pairs within lists.bound; with distances, writes them besides, in no order. `next` numbers
// the entries that a query has so far: its count, or where its next entry goes.
struct WithinArgs {
  SelectArgs pairs;          // launch as for lists of no entries
  unsigned long long* next;  // [queries]
  void* distances;           // [total], or null
  int64_t* positions;        // [total]
};
void launch_within(const WithinArgs& args, RowType type, TileDevice device, void* stream);

// --- sorting -------------------------------------------------------------------------------------

// Sorts each segment of entries by (distance, position), where it lies.
struct SortArgs {
  void* distances;
  int64_t* positions;
  const int64_t* starts;  // [segments + 1], or null: every segment has `length` entries
  const int64_t* blocks;  // [segments + 1] Σ sort_blocks of the segments before; null with starts
  int64_t segments;
  int64_t length;
  int64_t total_blocks;
};
inline int64_t sort_blocks(int64_t entries) { return pieces_of(entries, kSortEntries); }
inline SortArgs sort_equal(void* distances, int64_t* positions, int64_t segments, int64_t length) {
  return {distances, positions, nullptr, nullptr, segments, length, segments * sort_blocks(length)};
}
// `longest`: entries of the longest segment. One launch up to kSortEntries, then one more each
// time that is doubled, and one for each doubling before.
void launch_sort(const SortArgs& args, int64_t longest, RowType type, TileDevice device,
                 void* stream);

// --- rows of unit length, pairs of codes, roots
// ------------------------------------------------------------------

struct UnitArgs {
  TileMatrix rows;
  int64_t dim;
  void* out;  // [rows, dim] contiguous, in the type of the computation
};
void launch_unit_rows(const UnitArgs& args, RowType type, TileDevice device, void* stream);

// Bits that differ between row i of x1 and row i of x2, `dim` bytes each.
struct HammingArgs {
  TileMatrix x1;
  TileMatrix x2;
  int64_t dim;
  int32_t* out;  // [rows]
};
void launch_hamming(const HammingArgs& args, TileDevice device, void* stream);

// Square roots of float or double, correctly rounded.
void launch_root(const void* x, void* out, int64_t count, RowType type, TileDevice device,
                 void* stream);

}  // namespace siamcuda::cuda
