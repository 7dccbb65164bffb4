// Sinks that count distances: verification and identification over every pair.
//
// A panel of rows passes over a block of columns as in distances.inl; a row of the tile becomes
// distances where it lies, in the first-level cache, and is handed to the sink as ranges of genuine
// and of impostor columns. 2·D FLOPs a pair against one load, shift and increment.
// clang-format off
#include "cpu/simd.inl"
#include "cpu/tiles.inl"
#include "cpu/rescue.inl"
#include "cpu/pairs.inl"
#include "cpu/distances.inl"
// clang-format on

// Compiled with the batch losses. Declared outside of the target region, it may not be instantiated
// behind it.
extern template TileGeometry tile_geometry<float>(int64_t);
extern template TileGeometry tile_geometry<double>(int64_t);

using math::key_of;

// d² of row r from the columns [j, j + n) of the chunk to the distance of the metric, in place.
template <class C>
SIAM_INLINE void apply_metric(Metric metric, const RowPanel<C>& panel, int r,
                              const Packed<C>& chunk, int64_t j, int n, C* d) {
  if (metric == Metric::kEuclidean) {
    for (int c = 0; c < n; ++c) d[c] = std::sqrt(d[c]);
  } else if (metric == Metric::kCosine) {
    const bool zero = panel.norms[r] == 0;
    const C* const norms = chunk.norms + j;
    for (int c = 0; c < n; ++c) d[c] = math::cosine_distance(d[c], (norms[c] == 0) | zero);
  }
}

// sink.take(genuine?, row, column, n, distances): columns are those of the whole matrix. sink.open
// and sink.close stand around a panel.
template <class C, class Sink>
SIAM_INLINE void sweep(const SweepTask<C>& task, Sink& sink, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns;
  const Packed<C>& chunk = task.chunk;
  const TileGeometry g = tile_geometry<C>(columns);
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  const int64_t panel_size = kTileRows * g.padded;
  Aligned<C> left(kPanelGroup * left_size<C>(columns)), rows(kPanelGroup * panel_size);
  Aligned<C> sums(kTileRows * kScratchStep);
  Flag<C> flag[kMaxBlock];
  RowPanel<C> panel[kPanelGroup];
  int64_t from[kPanelGroup], to[kPanelGroup];  // columns of the chunk that a panel needs
  const auto clip = [&](int64_t column) {
    return std::clamp<int64_t>(column - chunk.first, 0, chunk.count);
  };
  for (int64_t u = begin; u < end; ++u) {
    const int64_t first = u * task.group * kTileRows;
    const int64_t last = std::min(first + task.group * kTileRows, task.x.rows);
    int group = 0;
    for (int64_t at = first; at < last; at += kTileRows, ++group) {
      const int64_t behind = std::min<int64_t>(at + kTileRows, last);
      from[group] = task.triangle ? clip(task.diagonal + at + 1) : 0;
      to[group] = chunk.count;
      if (task.genuine_only) {
        int64_t least = chunk.count, most = 0;
        for (int64_t i = at; i < behind; ++i) {
          least = std::min(least, clip(task.genuine[2 * i]));
          most = std::max(most, clip(task.genuine[2 * i + 1]));
        }
        from[group] = std::max(from[group], least);
        to[group] = most;
      }
      panel[group].left = left.data() + group * left_size<C>(columns);
      if (from[group] < to[group]) {
        load_panel(task.x, g, at, chunk.pairs, rows.data() + group * panel_size, panel[group]);
      }
    }
    for (int64_t j = 0; j < chunk.count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, chunk.count - j));
      for (int q = 0; q < group; ++q) {
        // A panel that needs no column has an empty range, perhaps within this block, and no rows.
        if (from[q] >= to[q] || j + n <= from[q] || j >= to[q]) continue;
        tile_sums<C, true>(panel[q], chunk, j, columns, round_up(n, kTileColumns<C>), sums.data());
        for (int r = 0; r < panel[q].count; ++r) {
          const int64_t i = panel[q].first + r;
          const int64_t low = clip(task.genuine[2 * i]), high = clip(task.genuine[2 * i + 1]);
          int64_t a = j, b = j + n;
          if (task.triangle) a = std::max(a, clip(task.diagonal + i + 1));
          if (task.genuine_only) {
            a = std::max(a, low);
            b = std::min(b, high);
          }
          if (a >= b) continue;
          C* const row = sums.data() + r * kScratchStep;
          C* const d = row + (a - j);
          const int count = static_cast<int>(b - a);
          finish_distances(task.x, task.ref, panel[q], r, chunk, a, count, g, threshold, d, flag);
          apply_metric(task.metric, panel[q], r, chunk, a, count, d);
          const bool clean = task.all_finite && panel[q].finite[r];
          const int64_t own = std::clamp(low, a, b), others = std::clamp(high, a, b);
          const auto hand = [&](auto genuine, int64_t begin_at, int64_t end_at) {
            if (begin_at >= end_at) return;
            sink.template take<decltype(genuine)::value>(i, chunk.first + begin_at,
                                                         static_cast<int>(end_at - begin_at),
                                                         row + (begin_at - j), clean);
          };
          hand(std::false_type{}, a, own);
          hand(std::true_type{}, own, others);
          hand(std::false_type{}, others, b);
        }
      }
    }
  }
}

// --- the hardest pairs ---------------------------------------------------------------------------

template <class C>
SIAM_INLINE bool before(const HardPair<C>& a, const HardPair<C>& b) {
  if (a.value != b.value) return a.value < b.value;
  return a.i != b.i ? a.i < b.i : a.j < b.j;
}

template <class C>
inline void keep(HardPairs<C>& kept, const HardPair<C>& pair) {
  HardPair<C>* const heap = kept.heap;
  int64_t at = 0;
  if (kept.count < kept.most) {
    for (at = kept.count++; at > 0 && before(heap[(at - 1) / 2], pair); at = (at - 1) / 2) {
      heap[at] = heap[(at - 1) / 2];
    }
  } else {
    if (!before(pair, heap[0])) return;
    for (int64_t child; (child = 2 * at + 1) < kept.most; at = child) {
      if (child + 1 < kept.most && before(heap[child], heap[child + 1])) ++child;
      if (!before(pair, heap[child])) break;
      heap[at] = heap[child];
    }
  }
  heap[at] = pair;
}

// Looks for distances that may be among the hardest. NaN never is.
template <class C, bool kGenuine>
SIAM_INLINE void keep_hardest(HardPairs<C>& kept, const int64_t* row_index,
                              const int64_t* column_index, bool triangle, int64_t i, int64_t column,
                              int n, const C* d) {
  if (kept.most == 0) return;
  const C sign = kGenuine ? C(-1) : C(1);
  const bool full = kept.count == kept.most;
  const C bound = full ? kept.heap[0].value : std::numeric_limits<C>::infinity();
  Flag<C> any = 0;
  for (int c = 0; c < n; ++c) any |= sign * d[c] <= bound ? 1 : 0;
  if (!any) return;
  for (int c = 0; c < n; ++c) {
    const C value = sign * d[c];
    if (!(value == value) || (kept.count == kept.most && value > kept.heap[0].value)) continue;
    const int64_t one = row_index[i], other = column_index[column + c];
    keep(kept,
         triangle && other < one ? HardPair<C>{value, other, one} : HardPair<C>{value, one, other});
  }
}

// --- sinks ---------------------------------------------------------------------------------------

template <class C>
struct TakeHistogram {
  HistogramSink<C>& sink;
  const bool triangle;

  template <bool kGenuine>
  SIAM_INLINE void take(int64_t i, int64_t column, int n, const C* d, bool clean) {
    double* const sums = sink.sums + (i / kTileRows * 2 + (kGenuine ? 0 : 1)) * 2;
    keep_hardest<C, kGenuine>(sink.hard[kGenuine ? 0 : 1], sink.row_index, sink.column_index,
                              triangle, i, column, n, d);
    clean ? count<kGenuine, true>(n, d, sums) : count<kGenuine, false>(n, d, sums);
  }

  template <bool kGenuine, bool kClean>
  SIAM_INLINE void count(int n, const C* d, double* sums) {
    constexpr int kCopies = kGenuine ? 1 : HistogramSink<C>::kCopies;
    constexpr int64_t kStep = kTopKeys + 1;
    uint32_t* const counts = kGenuine ? sink.genuine : sink.impostor;
    const auto top = [&](int c) -> int64_t {
      const int64_t key = key_of(d[c]) >> kLowBits<C>;
      return kClean || !std::isnan(d[c]) ? key : kTopKeys;
    };
    int c = 0;
    for (; c + kCopies <= n; c += kCopies) {
#pragma GCC unroll 4
      for (int k = 0; k < kCopies; ++k) ++counts[k * kStep + top(c + k)];
    }
    for (; c < n; ++c) ++counts[top(c)];
    constexpr int kWidth = Vec<C>::kWidth;
    DoubleSum sum, squares;
    const auto add = [&](Vec<C> x) {
      // NaN adds nothing; a comparison sets every bit of a lane.
      if (!kClean) x = (Native<C>)((Integers<C>)x.v & (Integers<C>)(x.v == x.v));
      sum.add(x.v);
      squares.add_product(x.v, x.v);
    };
    int v = 0;
    for (; v + kWidth <= n; v += kWidth) add(load(d + v));
    if (v < n) add(load_first(d + v, n - v));
    sums[0] += sum.total();
    sums[1] += squares.total();
  }
};

template <class C>
SIAM_INLINE int64_t table_bin(const int64_t* table, C distance) {
  const Key<C> key = key_of(distance);
  return math::table_bin<C>(table[key >> kLowBits<C>], key);
}

template <class C>
struct TakeTable {
  TableSink& sink;

  template <bool kGenuine>
  SIAM_INLINE void take(int64_t, int64_t, int n, const C* d, bool clean) {
    uint32_t* const counts = sink.counts[kGenuine ? 0 : 1];
    const int64_t* const table = sink.table;
    for (int c = 0; c < n; ++c) {
      if (!clean && std::isnan(d[c])) continue;
      ++counts[table_bin(table, d[c])];
    }
  }
};

template <class C>
struct TakeSelect {
  SelectSink& sink;

  template <bool kGenuine>
  SIAM_INLINE void take(int64_t, int64_t, int n, const C* d, bool clean) {
    for (int64_t p = 0; p < sink.intervals; ++p) {
      const math::Interval<C> interval{static_cast<Key<C>>(sink.low[p]),
                                       static_cast<int>(sink.shift[p])};
      const Key<C> width = interval.width();
      Flag<C> any = 0;
      for (int c = 0; c < n; ++c) any |= interval.at(key_of(d[c])) < width ? 1 : 0;
      if (!any) continue;
      uint32_t* const counts = sink.counts[kGenuine ? 0 : 1] + p * kSelectBins;
      for (int c = 0; c < n; ++c) {
        const Key<C> at = interval.at(key_of(d[c]));
        if (at < width && (clean || !std::isnan(d[c]))) ++counts[at >> interval.shift];
      }
    }
  }
};

// The lesser of two, where NaN is none.
template <class C>
SIAM_INLINE C nearer(C a, C b) {
  return (b == b) & !(a <= b) ? b : a;
}

template <class C>
struct TakeMates {
  RankSink<C>& sink;

  template <bool kGenuine>
  SIAM_INLINE void take(int64_t i, int64_t column, int n, const C* d, bool) {
    if (!kGenuine) return;
    C nearest = sink.mate[i];
    for (int c = 0; c < n; ++c) {
      if (column + c != sink.self + i) nearest = nearer(nearest, d[c]);
    }
    sink.mate[i] = nearest;
  }
};

template <class C>
struct TakeRanks {
  RankSink<C>& sink;

  template <bool kGenuine>
  SIAM_INLINE void take(int64_t i, int64_t, int n, const C* d, bool) {
    if (kGenuine) return;
    constexpr int kWidth = Vec<C>::kWidth;
    const C mate = sink.mate[i];
    Flag<C> within = 0;
    for (int c = 0; c < n; ++c) within += d[c] <= mate ? 1 : 0;
    C least[kWidth];  // so many at once: one minimum after the other would wait for the last
    std::fill_n(least, kWidth, sink.impostor[i]);
    int c = 0;
    for (; c + kWidth <= n; c += kWidth) {
      for (int l = 0; l < kWidth; ++l) least[l] = nearer(least[l], d[c + l]);
    }
    for (; c < n; ++c) least[0] = nearer(least[0], d[c]);
    for (int l = 1; l < kWidth; ++l) least[0] = nearer(least[0], least[l]);
    sink.within[i] += within;
    sink.impostor[i] = least[0];
  }
};

template <class C>
struct TakeBootstrap {
  BootstrapSink& sink;

  template <bool kGenuine>
  SIAM_INLINE void take(int64_t i, int64_t column, int n, const C* d, bool clean) {
    constexpr int kReplicates = BootstrapSink::kReplicates;
    const uint8_t* const own = sink.drawn + int64_t{sink.row_identity[i]} * kReplicates;
    int32_t* const counts = sink.counts[kGenuine ? 0 : 1];
    int32_t weight[kReplicates];
    int32_t identity = -1;
    for (int c = 0; c < n; ++c) {
      if (!clean && std::isnan(d[c])) continue;
      if (sink.column_identity[column + c] != identity) {  // once a class: columns are sorted
        identity = sink.column_identity[column + c];
        const uint8_t* const other = sink.drawn + int64_t{identity} * kReplicates;
        for (int k = 0; k < kReplicates; ++k) weight[k] = kGenuine ? own[k] : own[k] * other[k];
      }
      int32_t* const bin = counts + table_bin(sink.table, d[c]) * kReplicates;
      for (int k = 0; k < kReplicates; ++k) bin[k] += weight[k];
    }
  }
};

template <class C>
void sweep_histogram(const SweepTask<C>& task, HistogramSink<C>& sink, int64_t begin, int64_t end) {
  TakeHistogram<C> take{sink, task.triangle};
  sweep(task, take, begin, end);
}
template <class C>
void sweep_table(const SweepTask<C>& task, TableSink& sink, int64_t begin, int64_t end) {
  TakeTable<C> take{sink};
  sweep(task, take, begin, end);
}
template <class C>
void sweep_select(const SweepTask<C>& task, SelectSink& sink, int64_t begin, int64_t end) {
  TakeSelect<C> take{sink};
  sweep(task, take, begin, end);
}
template <class C>
void sweep_mates(const SweepTask<C>& task, RankSink<C>& sink, int64_t begin, int64_t end) {
  TakeMates<C> take{sink};
  sweep(task, take, begin, end);
}
template <class C>
void sweep_ranks(const SweepTask<C>& task, RankSink<C>& sink, int64_t begin, int64_t end) {
  TakeRanks<C> take{sink};
  sweep(task, take, begin, end);
}
template <class C>
void sweep_bootstrap(const SweepTask<C>& task, BootstrapSink& sink, int64_t begin, int64_t end) {
  TakeBootstrap<C> take{sink};
  sweep(task, take, begin, end);
}

#define SIAM_INSTANTIATE(C)                                                                   \
  template void sweep_histogram<C>(const SweepTask<C>&, HistogramSink<C>&, int64_t, int64_t); \
  template void sweep_table<C>(const SweepTask<C>&, TableSink&, int64_t, int64_t);            \
  template void sweep_select<C>(const SweepTask<C>&, SelectSink&, int64_t, int64_t);          \
  template void sweep_mates<C>(const SweepTask<C>&, RankSink<C>&, int64_t, int64_t);          \
  template void sweep_ranks<C>(const SweepTask<C>&, RankSink<C>&, int64_t, int64_t);          \
  template void sweep_bootstrap<C>(const SweepTask<C>&, BootstrapSink&, int64_t, int64_t);
SIAM_INSTANTIATE(float)
SIAM_INSTANTIATE(double)
#undef SIAM_INSTANTIATE
