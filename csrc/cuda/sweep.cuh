// The pairs of a tile as verification wants them: which are there, which are genuine, how far in
// the unit of the metric. Kernel text for nvcc and for the emulator.
//
// A tile above the diagonal, or in a sweep of mates one without any, is left before it is loaded.
#pragma once

#include "cuda/tiles.cuh"
#include "cuda/verify_launch.h"
#include "math/verify.h"

namespace siamcuda::cuda {

using math::Key;
using math::kNoKey;

// A key as atomics take it.
template <class C>
using AtomicKey = std::conditional_t<sizeof(C) == 8, unsigned long long, unsigned>;

enum class Pair : int { kNone, kGenuine, kImpostor };

struct SweepView {
  SweepArgs args;

  SIAM_DEVICE int64_t row_number(const TilePlace& place, int row) const {
    const int64_t r = place.first_row + row;
    return args.positions != nullptr ? load<int64_t>(args.positions + r) : args.first_row + r;
  }
  SIAM_DEVICE int64_t column_number(const TilePlace& place, int column) const {
    return args.first_column + place.first_column + column;
  }
  // Where a column of the operator lies in the tile, or at one of its ends.
  SIAM_DEVICE int in_tile(const TilePlace& place, int64_t column) const {
    const int64_t at = column - column_number(place, 0);
    return static_cast<int>(at < 0 ? 0 : at > kTileColumns ? kTileColumns : at);
  }

  // The same for all threads of the block: each warp looks at all rows.
  SIAM_DEVICE bool wants(const TilePlace& place) const {
    if (args.triangle && args.positions == nullptr &&
        column_number(place, place.columns_here - 1) <=
            args.diagonal + args.first_row + place.first_row) {
      return false;
    }
    if (!args.genuine_only) return true;
    bool some = false;
    SIAM_UNROLL
    for (int at = 0; at < kTileRows; at += 32) {
      const int row = at + static_cast<int>(threadIdx.x) % 32;
      if (row >= place.rows_here) continue;
      const int64_t* const range = args.genuine + 2 * row_number(place, row);
      const int low = in_tile(place, load<int64_t>(range));
      some = some || low < in_tile(place, load<int64_t>(range + 1));
    }
    return __any_sync(kWarp, some) != 0;
  }
};

// The pairs of a thread. They come to the front a column at a time, so that the code that looks at
// a pair stands kRows times, not kRows x kColumns.
template <class Layout, class C>
struct TilePairs {
  C rest[Layout::kColumns][Layout::kRows];
  unsigned range[Layout::kRows];  // first column | first genuine << 8 | last genuine + 1 << 16
  unsigned zero_rows = 0;         // bits of rows that have no direction

  SIAM_DEVICE TilePairs(const SweepView& sweep, const TilePlace& place, int thread,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) {
    const SweepArgs& args = sweep.args;
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) {
      SIAM_UNROLL
      for (int j = 0; j < Layout::kColumns; ++j) rest[j][i] = d2[i][j];
      const int row = Layout::row(thread, i);
      range[i] = kTileColumns;
      if (row >= place.rows_here) continue;
      const int64_t number = sweep.row_number(place, row);
      const int first = args.triangle ? sweep.in_tile(place, args.diagonal + number + 1) : 0;
      const int low = sweep.in_tile(place, load<int64_t>(args.genuine + 2 * number));
      const int high = sweep.in_tile(place, load<int64_t>(args.genuine + 2 * number + 1));
      range[i] = first | low << 8 | high << 16;
      if (args.metric == math::Metric::kCosine) {
        const C norm = load<C>(static_cast<const C*>(args.rows.norms) + place.first_row + row);
        zero_rows |= static_cast<unsigned>(norm == 0) << i;
      }
    }
  }

  SIAM_DEVICE Pair kind(int i, int column, const TilePlace& place) const {
    const int first = range[i] & 0xFF, low = range[i] >> 8 & 0xFF, high = range[i] >> 16;
    if (column < first || column >= place.columns_here) return Pair::kNone;
    return column >= low && column < high ? Pair::kGenuine : Pair::kImpostor;
  }

  // take(i, column, kind, distance) of the rows' pairs with column number j, which is then gone.
  template <class Take>
  SIAM_DEVICE void step(const SweepView& sweep, const TilePlace& place, int thread, int j,
                        const Take& take) {
    const int column = Layout::column(thread, j);
    if (sweep.args.metric == math::Metric::kEuclidean) {
      SIAM_UNROLL
      for (int i = 0; i < Layout::kRows; ++i) rest[0][i] = math::sqrt(rest[0][i]);
    } else if (sweep.args.metric == math::Metric::kCosine) {
      const C* const norms = static_cast<const C*>(sweep.args.columns.norms) + place.first_column;
      const bool zero = column < place.columns_here && load<C>(norms + column) == 0;
      SIAM_UNROLL
      for (int i = 0; i < Layout::kRows; ++i) {
        rest[0][i] = math::cosine_distance(rest[0][i], zero || (zero_rows >> i & 1u) != 0);
      }
    }
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) take(i, column, kind(i, column, place), rest[0][i]);
    SIAM_UNROLL
    for (int k = 1; k < Layout::kColumns; ++k) {
      SIAM_UNROLL
      for (int i = 0; i < Layout::kRows; ++i) rest[k - 1][i] = rest[k][i];
    }
  }

  template <class Take>
  SIAM_DEVICE void each(const SweepView& sweep, const TilePlace& place, int thread,
                        const Take& take) {
    SIAM_NO_UNROLL
    for (int j = 0; j < Layout::kColumns; ++j) step(sweep, place, thread, j, take);
    __syncwarp();  // lanes went their own ways
  }
};

// Equal counters in turn are added to at once: where all distances are alike, every pair would wait
// for one address.
template <class Index>
struct Run {
  Index at = -1;
  unsigned count = 0;

  template <class Add>
  SIAM_DEVICE void put(Index to, const Add& add) {
    if (to != at) {
      end(add);
      at = to;
      count = 0;
    }
    ++count;
  }
  template <class Add>
  SIAM_DEVICE void end(const Add& add) const {
    if (count > 0) add(at, count);
  }
};

// The least of the keys that the lanes of a row have, to one place a row.
template <class Layout, class C>
SIAM_DEVICE void keep_least(const SweepView& sweep, const TilePlace& place, int thread,
                            Key<C> (&least)[Layout::kRows], void* to) {
  SIAM_UNROLL
  for (int i = 0; i < Layout::kRows; ++i) {
    SIAM_UNROLL
    for (int lanes = Layout::kRowLanes / 2; lanes > 0; lanes /= 2) {
      const Key<C> other = __shfl_xor_sync(kWarp, least[i], lanes);
      least[i] = other < least[i] ? other : least[i];
    }
    const int row = Layout::row(thread, i);
    if (thread % Layout::kRowLanes != 0 || row >= place.rows_here || least[i] >= kNoKey<C>)
      continue;
    atomicMin(static_cast<AtomicKey<C>*>(to) + sweep.row_number(place, row),
              AtomicKey<C>{least[i]});
  }
}

}  // namespace siamcuda::cuda
