// Pairs that are computed once and give a gradient to both ends.
//
// Blocks of rows meet in rounds in which no block occurs twice: first the weights of all pairs of a
// round, then what they give, each row's by one thread and in the order of the rounds. A batch that
// meets itself so takes 3B²D FLOPs instead of the 4B²D of pairs.inl, since d(i, j) = d(j, i), and
// half of its values. The weights of a round are a bounded workspace.

// A panel's part of a meeting's weights, and which of its rows went past them.
template <class C>
struct MeetingPanel {
  int64_t at, j;  // first row in each side's chunk
  int rows, columns;
  C* weights;    // [kTileRows][kScratchStep]
  double* near;  // the same shape
  uint8_t* have_near;
  uint32_t filled = 0;  // rows whose `near` is filled, as bits

  MeetingPanel(const Meetings<C>& task, const TileGeometry& g, int64_t unit) {
    constexpr int64_t kTile = kTileRows * kScratchStep;
    const int64_t panels = g.meeting / kTileRows;
    const Meeting& meeting = task.list[unit / panels];
    at = meeting.first * g.meeting + unit % panels * kTileRows;
    j = meeting.second * g.meeting;
    rows = static_cast<int>(std::clamp<int64_t>(task.side[0].chunk.count - at, 0, kTileRows));
    columns = static_cast<int>(std::min<int64_t>(g.meeting, task.side[1].chunk.count - j));
    weights = task.weights ? task.weights + unit * kTile : nullptr;
    near = task.weights ? task.near + unit * kTile : nullptr;
    have_near = task.weights ? task.have_near + unit : nullptr;
  }

  // The rows that are not there or have nothing near, as zeros.
  void close() {
    if (!weights) return;
    *have_near = filled != 0;
    for (int r = 0; filled && r < rows; ++r) {
      if (!(filled >> r & 1)) std::fill_n(near + r * kScratchStep, columns, 0.0);
    }
    for (int r = rows; r < kTileRows; ++r) std::fill_n(weights + r * kScratchStep, columns, C(0));
  }
};

template <class F, class Row, class C>
void run_meetings(const PairMeetings<C>& task, const typename F::Params& params, int64_t begin,
                  int64_t end) {
  constexpr bool kSquares = Row::Element::kSquares;
  const Meetings<C>& all = task.meetings;
  const Packed<C>&own = all.side[0].chunk, &other = all.side[1].chunk;
  const int64_t columns = task.pairs.x.columns;
  const TileGeometry g = tile_geometry<C>(columns);
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  PairTask<C> within = task.pairs;
  within.chunk = other;
  PairTask<C> between = within;
  if (all.joined) between.share = 1;
  const PairRow<F, Row, C> row_within{within, params, g, threshold};
  const PairRow<F, Row, C> row_between{between, params, g, threshold};
  Aligned<C> left(left_size<C>(columns));
  Aligned<PairScratch<C>> scratch(1);
  RowPanel<C> panel;
  panel.left = left.data();

  for (int64_t u = begin; u < end; ++u) {
    MeetingPanel<C> part(all, g, u);
    if (part.rows <= 0) continue;
    const bool same = all.same(all.list[u / (g.meeting / kTileRows)]);
    const PairRow<F, Row, C>& row = same ? row_within : row_between;
    const int n = part.columns;
    borrow_panel(own, columns, g.padded, part.at, kSquares && own.pairs, panel);
    C* const sums = part.weights ? part.weights : scratch.data()->sums;
    tile_sums<C, kSquares>(panel, other, part.j, columns, round_up(n, kTileColumns<C>), sums);
    BatchStats stats{};
    for (int r = 0; r < panel.count; ++r) {
      double* const near = part.near ? part.near + r * kScratchStep : nullptr;
      part.filled |= uint32_t{row.run(panel, r, part.j, n, sums + r * kScratchStep, near,
                                      *scratch.data(), stats)}
                     << r;
    }
    part.close();
    if (!task.pairs.stats) continue;
    BatchStats& total = task.pairs.stats[panel.first / kTileRows];
    const int64_t times = all.joined && !same ? 2 : 1;  // within a block both ends count a pair
    total.active += times * stats.active;
    total.collapsed += times * stats.collapsed;
    total.positives += times * stats.positives;
    total.negatives += times * stats.negatives;
    total.positive_distance += static_cast<double>(times) * stats.positive_distance;
    total.negative_distance += static_cast<double>(times) * stats.negative_distance;
  }
}

template <class F, class C>
void batch_meetings(const PairMeetings<C>& task, const void* params, int64_t begin, int64_t end) {
  if constexpr (F::kHasTarget) {
    const auto& own = *static_cast<const typename F::Params*>(params);
    const auto run = [&](auto row) { run_meetings<F, decltype(row), C>(task, own, begin, end); };
    pick_row(F::row(own), run, typename F::Rows{});
  }
}

// The weights of a meeting from a matrix of them. The distances that forward made say which pairs
// are too close for a product.
template <class C, class T>
void load_meetings(const DistanceMeetings<C>& task, int64_t begin, int64_t end) {
  const Meetings<C>& all = task.meetings;
  const Packed<C>&own = all.side[0].chunk, &other = all.side[1].chunk;
  const int64_t columns = all.side[0].matrix.columns, step = all.side[1].matrix.rows;
  const int64_t rows = all.side[0].matrix.rows;
  const TileGeometry g = tile_geometry<C>(columns);
  // A little more than the forward pass's own, since the distances may be rounded to half.
  const C threshold = static_cast<C>(
      1.02 * math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  for (int64_t u = begin; u < end; ++u) {
    MeetingPanel<C> part(all, g, u);
    if (part.rows <= 0) continue;
    for (int r = 0; r < part.rows; ++r) {
      const int64_t i = own.first + part.at + r, n = part.columns;
      const int64_t offset = i * step + other.first + part.j;
      const T* const weights = static_cast<const T*>(task.weights) + offset;
      const T* const d2 = static_cast<const T*>(task.distances) + offset;
      const C norm = own.norms[part.at + r];
      const C* const norms = other.norms + part.j;
      C* const row = part.weights + r * kScratchStep;
      // A block's part of a row is short, and the next one on another page: hardware does not see
      // it coming.
      constexpr int64_t kAhead = 6, kLine = 64 / sizeof(T);
      for (int64_t c = 0; i + kAhead < rows && c < n; c += kLine) {
        __builtin_prefetch(weights + kAhead * step + c);
        __builtin_prefetch(d2 + kAhead * step + c);
      }
      const auto fine = [&](int64_t c) {
        const C size = norm + norms[c];
        return (static_cast<C>(math::widen(d2[c])) >= threshold * size) &
               (size >= SafeRange<C>::kLow) & (size <= SafeRange<C>::kHigh);
      };
      Flag<C> any = 0;
      for (int64_t c = 0; c < n; ++c) {
        row[c] = static_cast<C>(math::widen(weights[c]));
        any |= fine(c) ? 0 : 1;
      }
      if (any) {
        double* const near = part.near + r * kScratchStep;
        part.filled |= uint32_t{1} << r;
        for (int64_t c = 0; c < n; ++c) {
          near[c] = 0;
          if (fine(c)) continue;
          near[c] = row[c];
          row[c] = 0;
        }
      }
      all.side[0].weight_sum[i] += sum_weights(row, static_cast<int>(n));
    }
    part.close();
  }
}

template <class C>
void distance_meetings(const DistanceMeetings<C>& task, int64_t begin, int64_t end) {
  switch (task.meetings.side[0].matrix.dtype) {
    case DType::kFloat16: return load_meetings<C, math::Half>(task, begin, end);
    case DType::kBFloat16: return load_meetings<C, math::BFloat16>(task, begin, end);
    case DType::kFloat32: return load_meetings<C, float>(task, begin, end);
    case DType::kFloat64: return load_meetings<C, double>(task, begin, end);
  }
}

// sum[r] = Σ_k a[k·step + r] for the rows of a panel, and for some behind them.
template <class C>
struct ColumnSums {
  static constexpr int kVectors = (kTileRows + Vec<C>::kWidth - 1) / Vec<C>::kWidth;
  C sum[kVectors * Vec<C>::kWidth];

  ColumnSums(const C* a, int64_t step, int64_t n) {
    Vec<C> total[kVectors];
    for (int64_t k = 0; k < n; ++k) {
      for (int v = 0; v < kVectors; ++v) {
        total[v] = total[v] + load(a + k * step + v * Vec<C>::kWidth);
      }
    }
    for (int v = 0; v < kVectors; ++v) store(sum + v * Vec<C>::kWidth, total[v]);
  }
};

template <class C, bool kSquares>
void add_meetings(const Meetings<C>& task, int64_t begin, int64_t end) {
  constexpr int64_t kTile = kTileRows * kScratchStep;
  const int64_t columns = task.side[0].matrix.columns;
  const TileGeometry g = tile_geometry<C>(columns);
  const int64_t panels = g.meeting / kTileRows;
  Aligned<C> local(kTileRows * g.padded);
  Aligned<double> turned(kTile);  // what is near, row by row of the second block
  for (int64_t u = begin; u < end; ++u) {
    const int64_t m = u / (2 * panels), q = u % panels;
    const int which = static_cast<int>(u / panels % 2);
    const bool second = which == 1;  // its block: the weights are read the other way round
    const Meeting& meeting = task.list[m];
    const MeetingSide<C>&mine = task.side[which], &theirs = task.side[1 - which];
    const int64_t at = (second ? meeting.second : meeting.first) * g.meeting + q * kTileRows;
    const int64_t j = (second ? meeting.first : meeting.second) * g.meeting;
    if (!mine.gradient || at >= mine.chunk.count || (second && task.same(meeting))) continue;
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, mine.chunk.count - at));
    const int64_t n = std::min<int64_t>(g.meeting, theirs.chunk.count - j);
    const int64_t first = mine.chunk.first + at;
    const C* const own = mine.chunk.rows + at * g.padded;
    const C* const others = theirs.chunk.rows + j * g.padded;
    const C* const weights =
        task.weights + m * panels * kTile + (second ? q * kTileRows : q * kTile);
    C* const out = mine.gradient + first * columns;
    const bool whole = count == kTileRows && g.padded == columns;
    C* const to = whole ? out : local.data();
    for (int r = 0; !whole && r < count; ++r) {
      std::copy_n(out + r * columns, columns, to + r * g.padded);
    }

    const uint8_t* const have = task.have_near + m * panels;
    const double* near = task.near + m * panels * kTile;
    bool any = second ? false : have[q] != 0;
    if (second) {
      any = std::any_of(have, have + (n + kTileRows - 1) / kTileRows, [](uint8_t h) { return h; });
      for (int64_t c = 0; any && c < n; ++c) {
        const double* const from = near + c * kScratchStep + q * kTileRows;
        const bool there = have[c / kTileRows] != 0;
        for (int r = 0; r < count; ++r) turned.data()[r * kScratchStep + c] = there ? from[r] : 0.0;
      }
    }
    near = second ? turned.data() : near + q * kTile;
    for (int r = 0; any && r < count; ++r) {
      C* const row = to + r * g.padded;
      Differences<C> differences(own + r * g.padded, g.padded, row);
      for (int64_t c = 0; c < n; ++c) {
        const double weight = near[r * kScratchStep + c];
        if (weight == 0) continue;
        add_near<C, kSquares>(weight, mine.matrix, first + r, mine.chunk.finite[at + r] != 0,
                              theirs.matrix, theirs.chunk.first + j + c, others + c * g.padded,
                              theirs.chunk.finite[j + c] != 0, differences, row, task.isolated);
      }
      differences.flush();
    }

    if (!kSquares) {
      add_weighted_signs<C>(weights, second ? 1 : kScratchStep, second ? kScratchStep : 1, own,
                            count, others, n, g.padded, to);
    } else if (second) {
      const ColumnSums<C> sums(weights, kScratchStep, n);
      for (int r = 0; r < count; ++r) mine.weight_sum[first + r] += sums.sum[r];
      add_weighted_rows<C, true>(weights, others, n, g.padded, to);
    } else {
      add_weighted_rows(weights, others, n, g.padded, to);
    }
    for (int r = 0; !whole && r < count; ++r) {
      std::copy_n(to + r * g.padded, columns, out + r * columns);
    }
  }
}

template <class C>
void meeting_gradients(const Meetings<C>& task, int64_t begin, int64_t end) {
  task.squares ? add_meetings<C, true>(task, begin, end) : add_meetings<C, false>(task, begin, end);
}

// Rows [begin, end) of a side after the last round.
template <class C>
void finish_meetings(const Meetings<C>& task, int which, int64_t begin, int64_t end) {
  const MeetingSide<C>& side = task.side[which];
  const int64_t columns = side.matrix.columns;
  if (!task.squares) return;
  Aligned<C> row(columns);
  for (int64_t i = begin; i < end; ++i) {
    widen_row(side.matrix, i, row.data());
    if (!all_finite(row.data(), columns)) row.clear();
    C* const out = side.gradient + i * columns;
    finish_gradient<C, true>(side.weight_sum[i], row.data(), out, columns, out);
  }
}
