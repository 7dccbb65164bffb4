// Sinks that verification has for single rows: nearest mates and impostors, ranks, and the keys of
// few rows. Kernel text for nvcc and for the emulator.
//
//                    ranks                                    keys
//   on               tile_kernel, with its table              likewise
//   registers        fma32 168, D > 128 230, tf32x3 127,      168, 222, 128, 246
//     (most)         fma64 255
//   atomics, a tile  a least key and a count a row, of those  none
//                    lanes of a warp that share it: 512 of
//                    4 or 8 bytes at most
//   bytes besides    16 a row; mates: tiles without any are   16 a row; 4 or 8 a pair written,
//                    not loaded                               in whole sectors of float
//   operations, a    10                                       8
//   pair
#pragma once

#include "cuda/sweep.cuh"

namespace siamcuda::cuda {

template <class C>
struct RankSink {
  SweepView sweep;
  RankArgs args;

  SIAM_DEVICE bool wants(const TilePlace& place) const { return sweep.wants(place); }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) const {
    const int thread = thread_afresh();
    Key<C> least[Layout::kRows];
    C mate[Layout::kRows];
    int within[Layout::kRows], self[Layout::kRows];
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) {
      const int row = Layout::row(thread, i);
      least[i] = kNoKey<C>;
      mate[i] = 0;
      within[i] = 0;
      self[i] = -1;
      if (row >= place.rows_here) continue;
      const int64_t number = sweep.row_number(place, row);
      if (args.mates) {
        // kTileColumns, which is no column, where it lies behind; before, what is no mate in the
        // first column either.
        const int64_t at = args.self + number - sweep.column_number(place, 0);
        self[i] = at < 0 || at >= kTileColumns ? -1 : static_cast<int>(at);
      } else {
        mate[i] = load<C>(static_cast<const C*>(args.mate) + number);
      }
    }
    TilePairs<Layout, C> pairs(sweep, place, thread, d2);
    pairs.each(sweep, place, thread, [&](int i, int column, Pair kind, C distance) {
      const Pair wanted = args.mates ? Pair::kGenuine : Pair::kImpostor;
      if (kind != wanted || column == self[i]) return;
      const Key<C> key = math::key_of(distance);
      least[i] = key < least[i] ? key : least[i];
      within[i] += distance <= mate[i] ? 1 : 0;  // no distance is, where there is no mate
    });
    keep_least<Layout, C>(sweep, place, thread, least, args.mates ? args.mate : args.impostor);
    if (args.mates) return;
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) {
      SIAM_UNROLL
      for (int lanes = Layout::kRowLanes / 2; lanes > 0; lanes /= 2) {
        within[i] += __shfl_xor_sync(kWarp, within[i], lanes);
      }
      const int row = Layout::row(thread, i);
      if (thread % Layout::kRowLanes != 0 || row >= place.rows_here || within[i] == 0) continue;
      atomicAdd(args.within + sweep.row_number(place, row), static_cast<Counter>(within[i]));
    }
  }
};

template <class C>
struct KeysSink {
  SweepView sweep;
  KeysArgs args;

  SIAM_DEVICE bool wants(const TilePlace&) const { return true; }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) const {
    const int thread = thread_afresh();
    const Pair wanted = args.genuine ? Pair::kGenuine : Pair::kImpostor;
    Key<C>* const to =
        static_cast<Key<C>*>(args.keys) + place.first_row * place.columns + place.first_column;
    TilePairs<Layout, C> pairs(sweep, place, thread, d2);
    pairs.each(sweep, place, thread, [&](int i, int column, Pair kind, C distance) {
      const int row = Layout::row(thread, i);
      if (row >= place.rows_here || column >= place.columns_here) return;
      Key<C> key = math::key_of(distance);
      const bool here = kind == wanted && key <= math::kInfinityKey<C>;
      if (args.farthest) key = math::kInfinityKey<C> - key;
      store(here ? key : kNoKey<C>, to + row * place.columns + column);
    });
  }
};

}  // namespace siamcuda::cuda
