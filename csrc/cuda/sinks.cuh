// What becomes of a tile of distances, besides being searched: the sinks of the tile engine.
//
// One kernel an engine holds all of them behind a switch on the host's choice, since its main loop
// is what takes the compiler's time, and the switch is one branch a tile.
//
//   sink    writes a tile
//   store   64 x 128 distances
//   pairs   with gradients 64 x 128 weights, and a bit for each pair that is too close for a
//           product; 64 x 2 sums of values; with statistics 32 bytes of counts and 16 of distances
//           a warp. The formula runs on registers: 64 evaluations a thread.
#pragma once

#include "cuda/batch_launch.h"
#include "cuda/product.cuh"
#include "cuda/tiles.cuh"
#include "math/formulas.h"

namespace siamcuda::cuda {

template <class Row, class... Rows>
constexpr bool kAmong = (std::is_same_v<Row, Rows> || ...);
template <class Row, class... Rows>
constexpr bool list_holds(math::RowList<Rows...>) {
  return kAmong<Row, Rows...>;
}

// Calls visit(F(), params) for the loss that `formula` is of, if it has this Row.
template <class Row, class Visit>
SIAM_DEVICE void with_formula(const PairFormula& formula, const Visit& visit) {
#define SIAM_VISIT(F)                                                      \
  if constexpr (F::kHasTarget && list_holds<Row>(typename F::Rows{})) {    \
    if (formula.which == loss_number<F>()) {                               \
      typename F::Params params;                                           \
      memcpy(static_cast<void*>(&params), formula.params, sizeof(params)); \
      visit(F{}, params);                                                  \
    }                                                                      \
  }
  SIAM_FOR_EACH_LOSS(SIAM_VISIT)
#undef SIAM_VISIT
}

// A loss over pairs: values, weights and statistics of a tile.
//
// A row with NaN has a NaN norm. It makes its own value NaN and is nobody's partner; a column that
// is not finite gives no finite row a gradient.
template <class C, bool kSquares>
struct PairSink {
  PairArgs args;
  const C* norms1;  // [rows]
  const C* norms2;  // [columns]
  DirectRule<C> rule;

  using Row =
      math::Pair<std::conditional_t<kSquares, math::SquaredDifference, math::AbsoluteDifference>>;

  struct Tally {
    int active = 0, collapsed = 0, positives = 0, negatives = 0;
    double positive = 0, negative = 0;
  };

  template <class F>
  SIAM_DEVICE static void count(Tally& tally, const typename F::Params& params, C value,
                                const C* sum, Label label) {
    const double distance = F::template distances<Row>(params, sum).first;
    tally.active += value != 0;
    if (label == Label::kGenuine) {
      ++tally.positives;
      tally.positive += distance;
    } else {
      ++tally.negatives;
      tally.negative += distance;
      tally.collapsed += distance == 0;
    }
  }

  // Eight of the thread's pairs, of one row and from its column number `first`; the sum of their
  // values.
  static constexpr int kAtOnce = 8;
  template <class Layout, class F>
  SIAM_DEVICE C take_pairs(const TilePlace& place, int thread, int row, int first,
                           const typename F::Params& params, const C (&d2)[kAtOnce],
                           Tally& tally) const {
    const int64_t r = place.first_row + row;
    const bool row_here = row < place.rows_here;
    const int64_t label = row_here ? load<int64_t>(args.row_labels + r) : 0;
    const C norm1 = row_here ? load<C>(norms1 + r) : C(0);
    const C* const upstream1 = static_cast<const C*>(args.row_upstream);
    const C* const upstream2 = static_cast<const C*>(args.column_upstream);
    C own = static_cast<C>(args.row_factor);
    if (upstream1 != nullptr && row_here) own = load<C>(upstream1 + r);
    C* const weights = static_cast<C*>(args.weights);
    C sum = 0;
    SIAM_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t column = place.first_column + Layout::column(thread, first + j);
      if (!row_here || column >= place.columns) continue;
      C value = 0, weight = 0;
      bool direct = false;
      if (column != r + args.self) {
        const C norm2 = load<C>(norms2 + column);
        if (norm1 != norm1 || norm2 != norm2) {
          ++tally.active;
          if (norm1 != norm1) value = norm1;
        } else {
          const Label kind = load<int64_t>(args.column_labels + column) == label ? Label::kGenuine
                                                                                 : Label::kImpostor;
          const C distance[1] = {d2[j]};
          const auto terms = F::template evaluate<Row>(params, distance, kind);
          value = terms.value;
          if (args.counts != nullptr) count<F>(tally, params, value, distance, kind);
          if (is_finite(norm2) || !is_finite(norm1)) {
            const C other = upstream2 != nullptr ? load<C>(upstream2 + column)
                                                 : static_cast<C>(args.column_factor);
            weight = terms.slope[0] * (static_cast<C>(args.share) * (own + other));
            direct = kSquares && weight != 0 &&
                     math::needs_direct(d2[j], norm1 + norm2, rule.threshold, rule.smallest,
                                        rule.largest);
          }
        }
      }
      sum = sum + value;
      if (weights == nullptr) continue;
      store(weight, weights + r * place.columns + column);
      if (direct) atomicOr(args.mask + r * args.mask_words + column / 32, 1u << (column % 32));
    }
    return sum;
  }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) const {
    const int thread = thread_afresh();
    const int64_t tiles_across = (place.columns + kTileColumns - 1) / kTileColumns;
    const int64_t across = place.first_column / kTileColumns;
    constexpr int kParts = Layout::kColumns / kAtOnce, kSteps = Layout::kRows * kParts;
    C rest[kSteps][kAtOnce];
    SIAM_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      SIAM_UNROLL
      for (int j = 0; j < kAtOnce; ++j) rest[i][j] = d2[i / kParts][i % kParts * kAtOnce + j];
    }
    Tally tally;
    C sum = 0;  // of 8 or 16 values; what goes on is in double
    // Pairs come to the front in turn: the code of a formula stands 8 times, not 64.
    SIAM_NO_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      const int row = Layout::row(thread, i / kParts);
      with_formula<Row>(args.formula, [&](auto formula, const auto& params) {
        sum = sum + take_pairs<Layout, decltype(formula)>(place, thread, row, i % kParts * kAtOnce,
                                                          params, rest[0], tally);
      });
      SIAM_UNROLL
      for (int k = 1; k < kSteps; ++k) {
        SIAM_UNROLL
        for (int j = 0; j < kAtOnce; ++j) rest[k - 1][j] = rest[k][j];
      }
      if (i % kParts != kParts - 1) continue;
      double total = sum;
      sum = 0;
      if (args.values == nullptr) continue;
      SIAM_UNROLL
      for (int offset = Layout::kRowLanes / 2; offset > 0; offset /= 2) {
        total += __shfl_xor_sync(kWarp, total, offset);
      }
      if (thread % Layout::kRowLanes == 0 && row < place.rows_here) {
        store(total, args.values + (place.first_row + row) * 2 * tiles_across + 2 * across +
                         thread / 32 % 2);
      }
    }
    if (args.counts == nullptr) return;
    const int64_t slot =
        (place.first_row / kTileRows * tiles_across + across) * kTileWarps + thread / 32;
    int counts[kPairCounts] = {tally.active, tally.collapsed, tally.positives, tally.negatives};
    SIAM_UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
      SIAM_UNROLL
      for (int k = 0; k < kPairCounts; ++k) {
        counts[k] += __shfl_xor_sync(kWarp, counts[k], offset);
      }
      tally.positive += __shfl_xor_sync(kWarp, tally.positive, offset);
      tally.negative += __shfl_xor_sync(kWarp, tally.negative, offset);
    }
    if (thread % 32 != 0) return;
    SIAM_UNROLL
    for (int k = 0; k < kPairCounts; ++k) {
      store(static_cast<int64_t>(counts[k]), args.counts + slot * kPairCounts + k);
    }
    store(tally.positive, args.distances + 2 * slot);
    store(tally.negative, args.distances + 2 * slot + 1);
  }
};

enum class SinkKind : int32_t { kStore, kStoreWide, kPairs };

// All sinks of an engine for storage type T; which one runs is the host's choice.
template <class T>
struct TileSink {
  using C = typename math::Storage<T>::Compute;
  SinkKind kind;
  StoreSink<T> store;
  StoreSink<C> wide;
  PairSink<C, true> pairs;

  template <class Layout, class Sum>
  SIAM_DEVICE void take(const TilePlace& place,
                        const Sum (&d2)[Layout::kRows][Layout::kColumns]) const {
    if (kind == SinkKind::kPairs) {
      pairs.template take<Layout>(place, d2);
    } else if (sizeof(T) == sizeof(C) || kind == SinkKind::kStore) {
      store.template take<Layout>(place, d2);
    } else {
      wide.template take<Layout>(place, d2);
    }
  }
};

template <class Out>
StoreSink<Out> store_sink(Out* out, int64_t columns) {
  return {out, reinterpret_cast<uintptr_t>(out) % (2 * sizeof(Out)) == 0 && columns % 2 == 0};
}

template <class T>
void launch_store_typed(const TileArgs& args, DType dtype, void* out, bool wide, TileDevice device,
                        Stream stream) {
  using C = typename math::Storage<T>::Compute;
  TileSink<T> sink{};
  sink.kind = wide && sizeof(T) != sizeof(C) ? SinkKind::kStoreWide : SinkKind::kStore;
  sink.store = store_sink(static_cast<T*>(out), args.x2.rows);
  sink.wide = store_sink(static_cast<C*>(out), args.x2.rows);
  launch_tiles<T>(args, sink, dtype, device, stream);
}

template <class T>
void launch_squared_cdist_typed(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                                TileDevice device, Stream stream) {
  launch_row_norms<T>(args.x1, args.batch, args.dim, device.multiprocessors, stream);
  if (args.x2.norms != args.x1.norms) {
    launch_row_norms<T>(args.x2, args.batch, args.dim, device.multiprocessors, stream);
  }
  launch_store_typed<T>(args, dtype, out, out_dtype != dtype, device, stream);
}

template <class T>
void launch_pairs_typed(const TileArgs& tiles, const PairArgs& args, DType dtype, TileDevice device,
                        Stream stream) {
  using C = typename math::Storage<T>::Compute;
  const auto filled = [&](auto& pairs) {
    pairs.args = args;
    pairs.norms1 = static_cast<const C*>(tiles.x1.norms);
    pairs.norms2 = static_cast<const C*>(tiles.x2.norms);
    pairs.rule = direct_rule<C>(math::tile_engine(dtype, tiles.dim, device.capability), tiles.dim);
  };
  if (args.formula.squares) {
    TileSink<T> sink{};
    sink.kind = SinkKind::kPairs;
    filled(sink.pairs);
    launch_tiles<T>(tiles, sink, dtype, device, stream);
  } else if constexpr (sizeof(T) == sizeof(C)) {  // 16-bit inputs come widened
    PairSink<C, false> sink{};
    filled(sink);
    const TileLaunch launch =
        tile_launch(tiles.batch, tiles.x1.rows, tiles.x2.rows, device.multiprocessors);
    if (launch.tiles == 0) return;
    TileArgs mended = tiles;
    mended.x1 = without_idle_steps(tiles.x1, tiles.batch);
    mended.x2 = without_idle_steps(tiles.x2, tiles.batch);
    launch_tile_kernel<TileEngine::kAbsolute, T>(mended, sink, launch, stream);
  }
}

}  // namespace siamcuda::cuda
