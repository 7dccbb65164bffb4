// The losses over a batch and the gradients of distances as CUDA host code sees them: arguments,
// launch shapes and launchers. No torch and no CUDA headers; `stream` is a cudaStream_t.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/tile_launch.h"
#include "math/formulas.h"

namespace siamcuda::cuda {

// --- products with weights -----------------------------------------------------------------------

// A panel of weights w[p, c] belongs to pairs of its rows p and columns c. Its product with the
// rows at one end of the pairs is a gradient at the other end:
//   out[r] (+)= 2 Σ_k w (x[r] − y[k]),    or Σ_k w sign(x[r] − y[k]) with `signs`,
// where r numbers the panel's rows and k its columns, or with `transposed` the other way round.
// Pairs whose bit of `mask` is set are left out of the product and added one by one.
struct ProductArgs {
  TileMatrix x;  // [batch, rows, dim], with norms
  TileMatrix y;  // [batch, depth, dim], with norms
  int64_t batch;
  int64_t dim;
  const void* weights;   // [batch, panel rows, panel columns] of the type of computation
  const unsigned* mask;  // [batch, panel rows, mask_words], or null
  int64_t mask_words;
  const int* near;  // with a mask: see NearArgs
  bool transposed;
  bool signs;
  bool accumulate;       // add to what `out` holds
  bool every_pair;       // also pairs with a column that is not finite: NaN and inf are passed on
  const double* spoilt;  // [rows] whose NaN, with a NaN row, makes a NaN gradient; or null
  void* partials;        // [batch, splits, rows, dim] of the type of computation
  double* sums;          // [batch, splits, rows]
  void* out;             // [batch, rows, dim] of the type of computation
};

constexpr int kProductRows = 64;  // outputs of one block
constexpr int product_dims(bool narrow) { return narrow ? 64 : 128; }
constexpr int64_t kProductBlocks = 256;     // as many as fill a GPU, if the sum can be split
constexpr int64_t kProductMinDepth = 64;    // terms of a block
constexpr int64_t kProductMaxDepth = 4096;  // one chain of additions
constexpr int kProductUnit = 16;

struct ProductLaunch {
  int64_t row_tiles;
  int64_t dim_tiles;
  int64_t splits;  // blocks that share a sum
  int64_t split_depth;
  int64_t tiles;
  unsigned grid;
};

// Depends on the shape alone (but for the grid), and so do the bits of the result.
inline ProductLaunch product_launch(int64_t batch, int64_t rows, int64_t depth, int64_t dim,
                                    bool narrow, int multiprocessors) {
  const auto pieces = [](int64_t n, int64_t size) { return n / size + (n % size != 0); };
  ProductLaunch launch{};
  launch.row_tiles = pieces(rows, kProductRows);
  launch.dim_tiles = pieces(dim, product_dims(narrow));
  const int64_t outputs = batch * launch.row_tiles * launch.dim_tiles;
  const int64_t wanted = outputs > 0 ? pieces(kProductBlocks, outputs) : 1;
  const int64_t splits = std::max(std::min(wanted, pieces(depth, kProductMinDepth)),
                                  std::max<int64_t>(pieces(depth, kProductMaxDepth), 1));
  launch.split_depth =
      pieces(std::max<int64_t>(pieces(depth, splits), 1), kProductUnit) * kProductUnit;
  launch.splits = std::max<int64_t>(pieces(depth, launch.split_depth), 1);
  launch.tiles = outputs * launch.splits;
  const int64_t resident = static_cast<int64_t>(std::max(multiprocessors, 1)) * kTileBlocksPerSm;
  launch.grid = static_cast<unsigned>(std::min(launch.tiles, resident));
  return launch;
}

// Two kernels: products, and what is left for each row.
void launch_product(const ProductArgs& args, DType dtype, TileDevice device, void* stream);

// Which pairs are too close for a product, from the distances that forward made: bits of 32
// columns a word. `distances` [batch, P, R] of `distance_type`; the rule is that of the engine that
// `dtype` and the dimension choose, a little wider since distances may be rounded.
struct MaskArgs {
  const void* distances;
  const void* norms1;  // [batch, P]
  const void* norms2;  // [batch, R]
  int64_t batch;
  int64_t rows;
  int64_t columns;
  int64_t dim;
  unsigned* mask;  // [batch, P, words]
  int64_t words;
};
void launch_mask(const MaskArgs& args, DType dtype, DType distance_type, TileDevice device,
                 void* stream);

// In which tiles of kTileRows x kTileColumns pairs a bit of the mask is set.
struct NearArgs {
  const unsigned* mask;  // [batch, rows, words]
  int64_t batch;
  int64_t rows;
  int64_t words;
  int* near;  // [batch, tiles down, tiles across]
};
inline int64_t near_tiles(int64_t batch, int64_t rows, int64_t columns) {
  const auto pieces = [](int64_t n, int64_t size) { return n / size + (n % size != 0); };
  return batch * pieces(rows, kTileRows) * pieces(columns, kTileColumns);
}
void launch_near(const NearArgs& args, TileDevice device, void* stream);

// Norms of one matrix, as the tiles read them.
void launch_norms(const TileMatrix& x, int64_t batch, int64_t dim, DType dtype, TileDevice device,
                  void* stream);

// --- losses over pairs ---------------------------------------------------------------------------

// A loss of math/formulas.h with a target, its type erased for a kernel that knows them all.
struct PairFormula {
  int32_t which;  // its number among the losses
  bool squares;   // of Σ(x−y)², not of Σ|x−y|
  alignas(8) unsigned char params[64];
};

template <class F>
constexpr int loss_number() {
  int number = 0, found = -1;
#define SIAM_NUMBER(G)                      \
  if (std::is_same_v<F, G>) found = number; \
  ++number;
  SIAM_FOR_EACH_LOSS(SIAM_NUMBER)
#undef SIAM_NUMBER
  return found;
}

template <class List>
struct FirstRow;
template <class Row, class... Rest>
struct FirstRow<math::RowList<Row, Rest...>> {
  using type = Row;
};

// The first row that a loss over pairs names is of squares, the second, if any, of |x − y|.
template <class F>
PairFormula pair_formula(const void* params) {
  using Params = typename F::Params;
  static_assert(sizeof(Params) <= sizeof(PairFormula::params), "raise PairFormula::params");
  static_assert(std::is_trivially_copyable_v<Params>, "copied to the kernel as bytes");
  PairFormula formula{};
  formula.which = loss_number<F>();
  formula.squares = F::row(*static_cast<const Params*>(params)) == 0;
  std::memcpy(formula.params, params, sizeof(Params));
  return formula;
}

constexpr int kPairCounts = 4;  // active, collapsed, positives, negatives

// A panel of rows against a chunk of columns; what a pointer does not name is not written. A pair's
// weight is its slope times weight_share · (row_upstream + column_upstream).
struct PairArgs {
  PairFormula formula;
  const int64_t* row_labels;     // [rows]
  const int64_t* column_labels;  // [columns]
  int64_t self;                  // row r is column r + self; far from every column if none is
  double weight_share;
  double row_factor;            // where row_upstream is null
  double column_factor;         // likewise
  const void* row_upstream;     // [rows] of the type of computation, or null
  const void* column_upstream;  // [columns], or null
  void* weights;                // [rows, columns], or null
  unsigned* mask;               // [rows, mask_words], where there are weights of squares
  int64_t mask_words;
  double* values;     // [rows, kTileParts · column tiles] Σ of parts of a tile's values, or null
  int64_t* counts;    // [tiles, kPairCounts · kTileSlots], or null
  double* distances;  // [tiles, 2 · kTileSlots] Σ of positive and of negative distances
};
constexpr int kTileWarps = kTileThreads / 32;
// Whichever engine runs: the warps that share a row of a tile, and the warps of a tile. What there
// are fewer of is filled up with zeros.
constexpr int kTileParts = 4, kTileSlots = 8;

void launch_pairs(const TileArgs& tiles, const PairArgs& args, DType dtype, TileDevice device,
                  void* stream);

// values[r] (+)= share · Σ_k sums[r, k]
struct ValuesArgs {
  const double* sums;  // [rows, parts]
  int64_t rows, parts;
  double share;
  bool accumulate;
  double* values;  // [rows]
};
void launch_values(const ValuesArgs& args, TileDevice device, void* stream);

// Distances of all pairs to `out`, [P, R] of the type of computation; norms are there.
void launch_panel(const TileArgs& tiles, DType dtype, void* out, TileDevice device, void* stream);

// --- triplets ------------------------------------------------------------------------------------

constexpr int kAnchorCounts = 4;  // terms, active, collapsed, terms whose distances are added up

// A panel of anchors with all their distances. Weights for mining all and semihard, picks for the
// others.
struct AnchorArgs {
  const void* distances;  // [rows, columns] of the type of computation
  void* weights;          // [rows, columns] dL/d(d²), or null
  unsigned* mask;  // [rows, mask_words] pairs with a weight too close for a product: MaskArgs
  int64_t mask_words;
  const void* norms;         // [rows] of the anchors
  const void* column_norms;  // [columns], for the mask
  int64_t dim;               // likewise
  int64_t rows;
  int64_t columns;
  const int64_t* row_labels;     // [rows]
  const int64_t* column_labels;  // [columns]
  int64_t self;                  // row r is column r + self; far from every column if none is
  Mining mining;
  math::TripletLoss::Params params;
  const void* upstream;   // [rows], or null: 1
  double* values;         // [rows]
  int64_t* counts;        // [rows, kAnchorCounts]
  double* distance_sums;  // [rows, 2] of positives and of negatives
  int64_t* picked;        // [rows, 2] columns of positive and negative, or -1
  void* picked_weights;   // [rows, 2]
};
void launch_anchors(const AnchorArgs& args, DType dtype, TileDevice device, void* stream);

// Weights and mask of a batch that meets itself, with those of the other direction added in place.
struct SymmetricArgs {
  void* weights;   // [rows, rows]
  unsigned* mask;  // [rows, mask_words]
  int64_t mask_words;
  int64_t rows;
};
void launch_symmetric(const SymmetricArgs& args, DType dtype, TileDevice device, void* stream);

// What picks give to the rows at one end, or with both flags at both ends of a batch that meets
// itself.
struct PicksArgs {
  TileMatrix own;    // [rows, dim], with norms
  TileMatrix other;  // the rows at the other end
  int64_t dim;
  bool of_anchors, of_columns;
  int64_t anchors;
  const int64_t* picked;       // [anchors, 2]
  const void* picked_weights;  // [anchors, 2]
  const double* spoilt;        // [rows] as in ProductArgs, or null
  void* out;                   // [rows, dim]
};
void launch_picks(const PicksArgs& args, DType dtype, TileDevice device, void* stream);

// --- totals --------------------------------------------------------------------------------------

// total = factor · Σ values. With `report`, from counts of anchors, also what a pass reports:
// terms, active, collapsed, mean distance of positives and of negatives; and the total is divided
// by the terms (divide_by 0) or by the active ones (1), but by 1 at least, and `scale` says by how
// much.
struct TotalArgs {
  const double* values;  // [rows]
  int64_t rows;
  double factor;
  double* total;
  const int64_t* counts;    // [rows, kAnchorCounts]
  const double* distances;  // [rows, 2]
  int divide_by;            // -1: nothing
  double* scale;
  double* report;  // [5], or null
};
void launch_total(const TotalArgs& args, void* stream);

}  // namespace siamcuda::cuda
