// What becomes of a tile of distances, besides being searched: the sinks of the tile engine.
//
// An engine has a kernel for pairs, whose formulas it holds behind one switch a tile, and one for
// both ways to store.
//
//   sink    writes a tile
//   store   64 x 128 distances
//   pairs   with gradients 64 x 128 weights, and a bit for each pair that is too close for a
//           product; 64 x 4 sums of values; with statistics 32 bytes of counts and 16 of distances
//           a warp. The formula runs on registers, 8 evaluations under way together; where a tile
//           is whole and its norms are ordinary, without a question but the formula's own.
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

  // Of a thread's 64 pairs, and of a warp's 2048: two counts share a register.
  static constexpr int kSecond = 1 << 16;
  struct Tally {
    int active_collapsed = 0, positives_negatives = 0;
    double positive = 0, negative = 0;
  };

  template <class F>
  SIAM_DEVICE static void count(Tally& tally, const typename F::Params& params, C value,
                                const C* sum, Label label) {
    const double distance = F::template distances<Row>(params, sum).first;
    tally.active_collapsed += value != 0;
    if (label == Label::kGenuine) {
      ++tally.positives_negatives;
      tally.positive += distance;
    } else {
      tally.positives_negatives += kSecond;
      tally.negative += distance;
      if (distance == 0) tally.active_collapsed += kSecond;
    }
  }

  // What is known of a row before its pairs are looked at.
  struct RowPart {
    int64_t label = 0;
    C norm = 0;
    bool here = false;
  };
  SIAM_DEVICE RowPart row_part(const TilePlace& place, int row) const {
    RowPart part;
    part.here = row < place.rows_here;
    if (!part.here) return part;
    const int64_t r = place.first_row + row;
    part.label = load<int64_t>(args.row_labels + r);
    part.norm = load<C>(norms1 + r);
    return part;
  }
  SIAM_DEVICE static C upstream(const void* of, int64_t at, double otherwise) {
    return of != nullptr ? load<C>(static_cast<const C*>(of) + at) : static_cast<C>(otherwise);
  }

  // The thread's pairs, as many columns at a time as give eight pairs: their loads are under way
  // together, and the code of a formula stands 8 times, not 64. Adds each row's values to `sums`.
  template <class Layout>
  static constexpr int kColumnsAtOnce = 8 / Layout::kRows;
  // `kPlain`: the tile is whole, no row meets itself and no norm asks for more than one comparison.
  template <class Layout, bool kCount, bool kPlain, class F>
  SIAM_DEVICE void take_pairs(const TilePlace& place, int thread, const typename F::Params& params,
                              C (&rest)[Layout::kColumns][Layout::kRows], C (&sums)[Layout::kRows],
                              Tally& tally) const {
    constexpr int kRows = Layout::kRows, kWide = kColumnsAtOnce<Layout>;
    constexpr bool kKept = sizeof(C) == 4;  // else rows are read again, for want of registers
    RowPart kept[kKept ? kRows : 1];
    SIAM_UNROLL
    for (int i = 0; i < (kKept ? kRows : 0); ++i) {
      kept[i] = row_part(place, Layout::row(thread, i));
    }
    // The column of the tile that is its first row, or one that no row meets.
    const int64_t shift = place.first_row + args.self - place.first_column;
    const int diagonal =
        shift < -kTileRows || shift > kTileColumns ? -2 * kTileColumns : static_cast<int>(shift);
    const bool paired = kWide == 2 && place.columns % 2 == 0;
    C* const line = static_cast<C*>(args.weights) +
                    (place.first_row + Layout::row(thread, 0)) * place.columns + place.first_column;
    // Pairs come to the front in turn.
    SIAM_NO_UNROLL
    for (int j = 0; j < Layout::kColumns; j += kWide) {
      const int column = Layout::column(thread, j);
      int64_t label[kWide];
      C norm[kWide], other[kWide];
      bool there[kWide];
      SIAM_UNROLL
      for (int c = 0; c < kWide; ++c) {
        there[c] = kPlain || column + c < place.columns_here;
        const int64_t at = place.first_column + column + c;
        label[c] = there[c] ? load<int64_t>(args.column_labels + at) : 0;
        norm[c] = there[c] ? load<C>(norms2 + at) : C(0);
        other[c] = there[c] ? upstream(args.column_upstream, at, args.column_factor) : C(0);
      }
      unsigned direct = 0;
      SIAM_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const RowPart row = kKept ? kept[kKept ? i : 0] : row_part(place, Layout::row(thread, i));
        const int self = Layout::row(thread, i) + diagonal - column;
        const C own = kPlain || row.here
                          ? upstream(args.row_upstream, place.first_row + Layout::row(thread, i),
                                     args.row_factor)
                          : C(0);
        C weight[kWide];
        SIAM_UNROLL
        for (int c = 0; c < kWide; ++c) {
          const C distance[1] = {rest[c][i]};
          const bool pair = kPlain || (row.here && there[c] && self != c);
          const bool sound = kPlain || (pair && row.norm == row.norm && norm[c] == norm[c]);
          const Label kind = label[c] == row.label ? Label::kGenuine : Label::kImpostor;
          const auto terms = F::template evaluate<Row>(params, distance, kind);
          // A row with NaN spoils its own value, not that of the others.
          const C value = sound ? terms.value : pair && row.norm != row.norm ? row.norm : C(0);
          sums[i] = sums[i] + value;
          const bool weighs = kPlain || (sound && (is_finite(norm[c]) || !is_finite(row.norm)));
          const C each = terms.slope[0] * (static_cast<C>(args.weight_share) * (own + other[c]));
          weight[c] = weighs ? each : C(0);
          const C sum = row.norm + norm[c];
          const bool close = kPlain ? !(distance[0] >= rule.threshold * sum)
                                    : math::needs_direct(distance[0], sum, rule.threshold,
                                                         rule.smallest, rule.largest);
          const bool near = kSquares && weighs && each != 0 && close;
          direct |= static_cast<unsigned>(near) << (i * kWide + c);
          if (kCount && pair) {
            if (sound) {
              count<F>(tally, params, value, distance, kind);
            } else {
              ++tally.active_collapsed;
            }
          }
        }
        if (args.weights == nullptr || !(kPlain || row.here)) continue;
        C* const to = line + i * (Layout::kRowStep * place.columns) + column;
        if constexpr (kWide == 2) {
          if (paired) {
            if (there[0]) store(Pack<C, 2>{weight[0], weight[1]}, to);
            continue;
          }
        }
        SIAM_UNROLL
        for (int c = 0; c < kWide; ++c) {
          if (there[c]) store(weight[c], to + c);
        }
      }
      if (direct != 0 && args.weights != nullptr) {
        SIAM_NO_UNROLL
        for (int b = 0; b < 8; ++b) {
          if ((direct >> b & 1u) == 0) continue;
          const int64_t at = place.first_column + column + b % kWide;
          const int64_t r = place.first_row + Layout::row(thread, b / kWide);
          atomicOr(args.mask + r * args.mask_words + at / 32, 1u << (at % 32));
        }
      }
      SIAM_UNROLL
      for (int k = kWide; k < Layout::kColumns; ++k) {
        SIAM_UNROLL
        for (int i = 0; i < kRows; ++i) rest[k - kWide][i] = rest[k][i];
      }
    }
  }

  // The same for all lanes of a warp.
  SIAM_DEVICE bool is_plain(const TilePlace& place, int thread) const {
    const int64_t shift = place.first_row + args.self - place.first_column;
    bool odd = place.rows_here < kTileRows || place.columns_here < kTileColumns ||
               (shift > -kTileRows && shift < kTileColumns);
    SIAM_UNROLL
    for (int k = 0; k < (kTileRows + kTileColumns) / 32; ++k) {
      const int at = k * 32 + thread % 32;
      const bool of_row = k < kTileRows / 32;
      const int64_t index = of_row ? place.first_row + at : place.first_column + at - kTileRows;
      if (index >= (of_row ? place.rows : place.columns)) continue;
      const C norm = load<C>((of_row ? norms1 : norms2) + index);
      odd = odd || !(norm >= rule.smallest && norm + norm <= rule.largest);
    }
    return __ballot_sync(kWarp, odd) == 0;
  }

  // The words of the mask that are this tile's alone.
  template <int kThreads>
  SIAM_DEVICE void clear_mask(const TilePlace& place, int thread) const {
    constexpr int kWords = kTileColumns / 32;
    for (int at = thread; at < kTileRows * kWords; at += kThreads) {
      const int64_t word = place.first_column / 32 + at % kWords;
      if (at / kWords < place.rows_here && word < args.mask_words) {
        store(0u, args.mask + (place.first_row + at / kWords) * args.mask_words + word);
      }
    }
    __syncthreads();
  }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) const {
    const int thread = thread_afresh();
    const int64_t tiles_across = (place.columns + kTileColumns - 1) / kTileColumns;
    const int64_t across = place.first_column / kTileColumns;
    if (args.mask != nullptr) clear_mask<Layout::kThreads>(place, thread);
    C rest[Layout::kColumns][Layout::kRows], sums[Layout::kRows];
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) {
      sums[i] = 0;  // of 8 or 16 values; what goes on is in double
      SIAM_UNROLL
      for (int j = 0; j < Layout::kColumns; ++j) rest[j][i] = d2[i][j];
    }
    Tally tally;
    const bool plain = is_plain(place, thread);
    with_formula<Row>(args.formula, [&](auto formula, const auto& params) {
      using F = decltype(formula);
      if (args.counts != nullptr) {
        take_pairs<Layout, true, false, F>(place, thread, params, rest, sums, tally);
      } else if (plain) {
        take_pairs<Layout, false, true, F>(place, thread, params, rest, sums, tally);
      } else {
        take_pairs<Layout, false, false, F>(place, thread, params, rest, sums, tally);
      }
    });
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) {
      if (args.values == nullptr) break;
      const int row = Layout::row(thread, i);
      double total = sums[i];
      SIAM_UNROLL
      for (int offset = Layout::kRowLanes / 2; offset > 0; offset /= 2) {
        total += __shfl_xor_sync(kWarp, total, offset);
      }
      if (thread % Layout::kRowLanes == 0 && row < place.rows_here) {
        double* const to = args.values + (place.first_row + row) * kTileParts * tiles_across +
                           kTileParts * across + Layout::part(thread);
        SIAM_UNROLL
        for (int part = 0; part < kTileParts; part += Layout::kParts) {
          store(part == 0 ? total : 0.0, to + part);
        }
      }
    }
    if (args.counts == nullptr) return;
    const int64_t slot =
        (place.first_row / kTileRows * tiles_across + across) * kTileSlots + thread / 32;
    SIAM_UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
      tally.active_collapsed += __shfl_xor_sync(kWarp, tally.active_collapsed, offset);
      tally.positives_negatives += __shfl_xor_sync(kWarp, tally.positives_negatives, offset);
      tally.positive += __shfl_xor_sync(kWarp, tally.positive, offset);
      tally.negative += __shfl_xor_sync(kWarp, tally.negative, offset);
    }
    if (thread % 32 != 0) return;
    const int counts[kPairCounts] = {
        tally.active_collapsed % kSecond, tally.active_collapsed / kSecond,
        tally.positives_negatives % kSecond, tally.positives_negatives / kSecond};
    constexpr int kWarps = Layout::kThreads / 32;
    SIAM_UNROLL
    for (int more = 0; more < kTileSlots; more += kWarps) {
      SIAM_UNROLL
      for (int k = 0; k < kPairCounts; ++k) {
        store(more == 0 ? static_cast<int64_t>(counts[k]) : int64_t{0},
              args.counts + (slot + more) * kPairCounts + k);
      }
      store(more == 0 ? tally.positive : 0.0, args.distances + 2 * (slot + more));
      store(more == 0 ? tally.negative : 0.0, args.distances + 2 * (slot + more) + 1);
    }
  }
};

// Distances in the storage type, or for 16-bit rows in float; which is the host's choice.
template <class T>
struct EitherStore {
  using C = typename math::Storage<T>::Compute;
  bool wide;
  StoreSink<T> narrow_sink;
  StoreSink<C> wide_sink;

  template <class Layout, class Sum>
  SIAM_DEVICE void take(const TilePlace& place,
                        const Sum (&d2)[Layout::kRows][Layout::kColumns]) const {
    if (sizeof(T) == sizeof(C) || !wide) {
      narrow_sink.template take<Layout>(place, d2);
    } else {
      wide_sink.template take<Layout>(place, d2);
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
  const EitherStore<T> sink{wide, store_sink(static_cast<T*>(out), args.x2.rows),
                            store_sink(static_cast<C*>(out), args.x2.rows)};
  launch_tiles<T>(args, sink, dtype, device, stream);
}

template <class T>
void launch_squared_cdist_typed(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                                TileDevice device, Stream stream) {
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
    PairSink<C, true> sink{};
    filled(sink);
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
