// Sinks that count distances: by top key, by a table, within intervals. Kernel text for nvcc and
// for the emulator.
//
// A thread's pairs are counted a column at a time, equal ones in turn together. Of top keys a few
// hundred are in use, and one counter would be the goal of thousands of pairs a microsecond: a tile
// counts in shared memory first, in a window of 2048 keys (in float 8 octaves) that ends at its
// largest finite distance, and then adds what is not 0 to the counters of all; what lies outside
// goes to these at once, and no counter is wrong for it. Bins of a table hold alike, so their
// counters lie apart, and pairs go to them at once; of intervals few pairs are left.
//
//                    histogram              table             intervals
//   on               tile_kernel, with its table but for what is said here
//   registers        fma32 168, D > 128 228, tf32x3 128, fma64 252
//     (most)
//   shared memory    in the stages of the   none              none
//                    tile: 16 KiB of
//                    window, 1 of sums
//   barriers, a tile 3                     none              none
//   atomics, a tile  a few hundred, to      8192 of 8 bytes   what lies within
//                    counters that are      at most
//                    hot; 192 at most to
//                    rows; 8192 in shared
//                    memory at most
//   bytes besides    16 a row; 32 a tile    16 a row; 8 a     16 a row
//                                           pair, from L1
//   operations, a    15, and 3 in double    15                8, and 3 an
//   pair (counted                                             interval
//   in the text)
//
// Sums of distances are in double: of a thread's pairs in turn, of lanes, of warps; those of tiles
// are added up by another kernel (moments.cuh). Where a GPU has a 64th of its rate in double,
// these 3 operations a pair take as long as a product of D = 200: the pass that finds order
// statistics has none.
#pragma once

#include "cuda/sweep.cuh"

namespace siamcuda::cuda {

constexpr int kWindowKeys = 2048;

template <class C>
struct HistogramSink {
  static constexpr bool kScratch = true;
  static constexpr int kLow = math::kLowBits<C>;
  static constexpr int kStep = math::kTopKeys + 1;  // counters of one kind

  SweepView sweep;
  HistogramArgs args;

  SIAM_DEVICE bool wants(const TilePlace& place) const { return sweep.wants(place); }

  // First key of the window, from the thread's largest distance that is finite. The metrics keep
  // the order; what is not in the window is counted all the same.
  template <class Layout>
  SIAM_DEVICE int window_of(const C (&d2)[Layout::kRows][Layout::kColumns], int thread,
                            const Shared<unsigned>& tops) const {
    Key<C> most = 0;
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) {
      SIAM_UNROLL
      for (int j = 0; j < Layout::kColumns; ++j) {
        const Key<C> key = math::key_of(d2[i][j]);
        if (key < math::kInfinityKey<C> && key > most) most = key;
      }
    }
    C distance = math::bit_cast<C>(most);
    if (sweep.args.metric == math::Metric::kEuclidean) distance = math::sqrt(distance);
    if (sweep.args.metric == math::Metric::kCosine) distance = C(0.5) * distance;
    unsigned top = static_cast<unsigned>(math::key_of(distance) >> kLow);
    SIAM_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const unsigned other = __shfl_xor_sync(kWarp, top, lanes);
      top = other > top ? other : top;
    }
    if (thread % 32 == 0) tops[thread / 32] = top;
    __syncthreads();
    SIAM_UNROLL
    for (int w = 0; w < Layout::kThreads / 32; ++w) {
      const unsigned other = tops[w];
      top = other > top ? other : top;
    }
    return static_cast<int>(top) + 1 > kWindowKeys ? static_cast<int>(top) + 1 - kWindowKeys : 0;
  }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place, const C (&d2)[Layout::kRows][Layout::kColumns],
                        const Shared<unsigned char>& scratch) const {
    constexpr int kWarps = Layout::kThreads / 32, kBytes = 2 * kWindowKeys * 4;
    constexpr int kSums = kBytes + kTileRows * 8, kTops = kSums + kWarps * kMoments * 8;
    static_assert(kTops + kWarps * 4 <= kStages * kStageBytes, "fits the stages");
    const int thread = thread_afresh();
    const Shared<unsigned> window = shared_cast<unsigned>(scratch);
    // Of mates, which are few: registers are for impostors.
    const Shared<AtomicKey<C>> far = shared_cast<AtomicKey<C>>(scratch + kBytes);
    const Shared<double> sums = shared_cast<double>(scratch + kSums);
    const Shared<unsigned> tops = shared_cast<unsigned>(scratch + kTops);
    __syncthreads();  // the tile's last stage is no longer read
    if (thread < kTileRows) far[thread] = kNoKey<C>;
    for (int at = thread; at < 2 * kWindowKeys; at += Layout::kThreads) window[at] = 0;
    const int base = window_of<Layout>(d2, thread, tops);

    const auto add = [&](int at, unsigned count) {
      const int top = at < kStep ? at : at - kStep;
      const unsigned slot = static_cast<unsigned>(top - base);
      if (slot < kWindowKeys) {
        atomicAdd(window + ((at < kStep ? 0 : kWindowKeys) + slot), count);
      } else {
        atomicAdd(args.counts + at, Counter{count});
      }
    };
    double sum[kMoments] = {};
    Key<C> near[Layout::kRows];
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) near[i] = kNoKey<C>;
    Run<int> run;
    TilePairs<Layout, C> pairs(sweep, place, thread, d2);
    pairs.each(sweep, place, thread, [&](int i, int, Pair kind, C distance) {
      if (kind == Pair::kNone) return;
      const Key<C> key = math::key_of(distance);
      const bool number = key <= math::kInfinityKey<C>;
      run.put((kind == Pair::kGenuine ? 0 : kStep) +
                  (number ? static_cast<int>(key >> kLow) : static_cast<int>(math::kTopKeys)),
              add);
      if (!number) return;
      const double wide = distance;
      if (kind == Pair::kGenuine) {
        sum[0] += wide;
        sum[1] = __fma_rn(wide, wide, sum[1]);
        if (args.nearest != nullptr) {
          atomicMin(far + Layout::row(thread, i), AtomicKey<C>{math::kInfinityKey<C> - key});
        }
      } else {
        sum[2] += wide;
        sum[3] = __fma_rn(wide, wide, sum[3]);
        near[i] = key < near[i] ? key : near[i];
      }
    });
    run.end(add);
    if (args.nearest != nullptr) keep_least<Layout, C>(sweep, place, thread, near, args.nearest);

    SIAM_UNROLL
    for (int m = 0; m < kMoments; ++m) {
      SIAM_UNROLL
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum[m] += __shfl_xor_sync(kWarp, sum[m], lanes);
      }
      if (thread % 32 == 0) sums[thread / 32 * kMoments + m] = sum[m];
    }
    __syncthreads();
    if (thread < kMoments) {
      double total = 0;
      SIAM_UNROLL
      for (int w = 0; w < kWarps; ++w) {
        const double part = sums[w * kMoments + thread];
        total += part;
      }
      const int64_t across = (place.columns + kTileColumns - 1) / kTileColumns;
      const int64_t tile = place.first_row / kTileRows * across + place.first_column / kTileColumns;
      store(total, args.partials + tile * kMoments + thread);
    }
    if (args.nearest != nullptr && thread < place.rows_here) {
      const AtomicKey<C> least = far[thread];
      if (least < kNoKey<C>) {
        atomicMin(static_cast<AtomicKey<C>*>(args.farthest) + sweep.row_number(place, thread),
                  least);
      }
    }
    SIAM_NO_UNROLL
    for (int at = thread; at < 2 * kWindowKeys; at += Layout::kThreads) {
      const unsigned count = window[at];
      if (count == 0) continue;
      const int top = base + at % kWindowKeys;
      atomicAdd(args.counts + (at < kWindowKeys ? top : kStep + top), Counter{count});
    }
  }
};

template <class C>
struct TableSink {
  SweepView sweep;
  TableArgs args;

  SIAM_DEVICE bool wants(const TilePlace& place) const { return sweep.wants(place); }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) const {
    const int thread = thread_afresh();
    const auto add = [&](int64_t at, unsigned count) {
      atomicAdd(args.counts + at, Counter{count});
    };
    Run<int64_t> run;
    TilePairs<Layout, C> pairs(sweep, place, thread, d2);
    pairs.each(sweep, place, thread, [&](int, int, Pair kind, C distance) {
      const Key<C> key = math::key_of(distance);
      if (kind == Pair::kNone || key > math::kInfinityKey<C>) return;
      const int64_t entry = load<int64_t>(args.table + (key >> math::kLowBits<C>));
      run.put((kind == Pair::kGenuine ? 0 : args.size) + math::table_bin<C>(entry, key), add);
    });
    run.end(add);
  }
};

template <class C>
struct IntervalSink {
  SweepView sweep;
  IntervalArgs args;

  SIAM_DEVICE bool wants(const TilePlace& place) const { return sweep.wants(place); }

  template <class Layout>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) const {
    const int thread = thread_afresh();
    const auto add = [&](int64_t at, unsigned count) {
      atomicAdd(args.counts + at, Counter{count});
    };
    const int64_t kinds = args.intervals * math::kSelectBins;
    Run<int64_t> run;
    TilePairs<Layout, C> pairs(sweep, place, thread, d2);
    SIAM_NO_UNROLL
    for (int j = 0; j < Layout::kColumns; ++j) {
      Key<C> keys[Layout::kRows];
      unsigned genuine = 0;
      pairs.step(sweep, place, thread, j, [&](int i, int, Pair kind, C distance) {
        keys[i] = kind == Pair::kNone ? kNoKey<C> : math::key_of(distance);
        genuine |= static_cast<unsigned>(kind == Pair::kGenuine) << i;
      });
      SIAM_NO_UNROLL
      for (int64_t p = 0; p < args.intervals; ++p) {
        const math::Interval<C> interval{static_cast<Key<C>>(load<int64_t>(args.low + p)),
                                         static_cast<int>(load<int64_t>(args.shift + p))};
        SIAM_UNROLL
        for (int i = 0; i < Layout::kRows; ++i) {
          const Key<C> at = interval.at(keys[i]);
          if (at >= interval.width() || keys[i] > math::kInfinityKey<C>) continue;
          run.put(((genuine >> i & 1u) != 0 ? 0 : kinds) + p * math::kSelectBins +
                      static_cast<int64_t>(at >> interval.shift),
                  add);
        }
      }
    }
    run.end(add);
    __syncwarp();
  }
};

}  // namespace siamcuda::cuda
