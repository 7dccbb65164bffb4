// The losses over all pairs of one batch, each pair computed once.
//
// d(i, j) = d(j, i), so a block of rows that meets another one makes weights for both. A round is a
// list of meetings in which no block occurs twice: first the weights of all of them, then the
// gradients, each row's by one thread and in the order of the rounds. 3B²D FLOPs instead of the
// 4B²D of pairs.inl, and half of its values; the weights of a round are in the second-level cache.

template <class C>
SIAM_INLINE bool meets_itself(const MeetingTask<C>& task, const Meeting& meeting) {
  return meeting.first == meeting.second && task.rows.first == task.pairs.chunk.first;
}

template <class F, class Row, class C>
void run_meetings(const MeetingTask<C>& task, const typename F::Params& params, int64_t begin,
                  int64_t end) {
  constexpr bool kSquares = Row::Element::kSquares;
  constexpr int64_t kTile = kTileRows * kScratchStep;
  const int64_t columns = task.pairs.x.columns;
  const TileGeometry g = tile_geometry<C>(columns);
  const int64_t panels = g.meeting / kTileRows;
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  PairTask<C> apart = task.pairs;  // between two blocks a pair is computed once, for both ends
  apart.share = 1;
  apart.row_factor = task.pairs.share * task.pairs.row_factor;
  apart.column_factor = task.pairs.share * task.pairs.column_factor;
  const PairRow<F, Row, C> within{task.pairs, params, g, threshold};
  const PairRow<F, Row, C> between{apart, params, g, threshold};
  Aligned<C> left(left_size<C>(columns));
  Aligned<PairScratch<C>> scratch(1);
  RowPanel<C> panel;
  panel.left = left.data();

  for (int64_t u = begin; u < end; ++u) {
    const Meeting& meeting = task.meetings[u / panels];
    const bool same = meets_itself(task, meeting);
    const int64_t at = meeting.first * g.meeting + u % panels * kTileRows;
    const int64_t j = meeting.second * g.meeting;
    if (task.weights) task.have_near[u] = 0;
    if (at >= task.rows.count) continue;
    const int n = static_cast<int>(std::min<int64_t>(g.meeting, task.pairs.chunk.count - j));
    borrow_panel(task.rows, columns, g.padded, at, kSquares && task.rows.pairs, panel);
    C* const sums = task.weights ? task.weights + u * kTile : scratch.data()->sums;
    double* const near = task.weights ? task.near + u * kTile : nullptr;
    tile_sums<C, kSquares>(panel, task.pairs.chunk, j, columns, round_up(n, kTileColumns<C>), sums);
    BatchStats stats{};
    uint32_t filled = 0;
    for (int r = 0; r < panel.count; ++r) {
      double* const near_row = near ? near + r * kScratchStep : nullptr;
      const PairRow<F, Row, C>& row = same ? within : between;
      filled |= uint32_t{row.run(panel, r, j, n, sums + r * kScratchStep, near_row, *scratch.data(),
                                 stats)}
                << r;
    }
    for (int r = 0; filled && r < panel.count; ++r) {
      if (!(filled >> r & 1)) std::fill_n(near + r * kScratchStep, n, 0.0);
    }
    for (int r = panel.count; task.weights && r < kTileRows; ++r) {
      std::fill_n(sums + r * kScratchStep, n, C(0));
    }
    if (task.weights) task.have_near[u] = filled != 0;
    if (!task.pairs.stats) continue;
    BatchStats& total = task.pairs.stats[panel.first / kTileRows];
    const int64_t times = same ? 1 : 2;
    total.active += times * stats.active;
    total.collapsed += times * stats.collapsed;
    total.positives += times * stats.positives;
    total.negatives += times * stats.negatives;
    total.positive_distance += static_cast<double>(times) * stats.positive_distance;
    total.negative_distance += static_cast<double>(times) * stats.negative_distance;
  }
}

template <class F, class C>
void batch_meetings(const MeetingTask<C>& task, const void* params, int64_t begin, int64_t end) {
  if constexpr (F::kHasTarget) {
    const auto& own = *static_cast<const typename F::Params*>(params);
    const auto run = [&](auto row) { run_meetings<F, decltype(row), C>(task, own, begin, end); };
    pick_row(F::row(own), run, typename F::Rows{});
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
void add_meetings(const MeetingTask<C>& task, int64_t begin, int64_t end) {
  constexpr int64_t kTile = kTileRows * kScratchStep;
  const Matrix& x = task.pairs.x;
  const TileGeometry g = tile_geometry<C>(x.columns);
  const int64_t panels = g.meeting / kTileRows;
  Aligned<C> local(kTileRows * g.padded);
  for (int64_t u = begin; u < end; ++u) {
    const int64_t m = u / (2 * panels), q = u % panels;
    const bool second = u / panels % 2 != 0;  // its block: the weights are read the other way round
    const Meeting& meeting = task.meetings[m];
    const bool same = meets_itself(task, meeting);
    const Packed<C>& mine = second ? task.pairs.chunk : task.rows;
    const Packed<C>& theirs = second ? task.rows : task.pairs.chunk;
    const int64_t at = (second ? meeting.second : meeting.first) * g.meeting + q * kTileRows;
    const int64_t j = (second ? meeting.first : meeting.second) * g.meeting;
    if (at >= mine.count || (second && same)) continue;
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, mine.count - at));
    const int64_t n = std::min<int64_t>(g.meeting, theirs.count - j);
    const C* const own = mine.rows + at * g.padded;
    const C* const others = theirs.rows + j * g.padded;
    const C* const weights =
        task.weights + m * panels * kTile + (second ? q * kTileRows : q * kTile);
    C* const out = task.pairs.gradient + (mine.first + at) * x.columns;
    const bool whole = count == kTileRows && g.padded == x.columns;
    C* const to = whole ? out : local.data();
    // A block meets itself before anybody else.
    if (same) {
      std::fill_n(to, kTileRows * g.padded, C(0));
    } else if (!whole) {
      for (int r = 0; r < count; ++r)
        std::copy_n(out + r * x.columns, x.columns, to + r * g.padded);
    }

    const auto near = [&](int r, int64_t c, const double* weight) {
      if (*weight == 0) return;
      add_near<C, kSquares>(*weight, x, mine.first + at + r, own + r * g.padded,
                            mine.finite[at + r] != 0, x, theirs.first + j + c,
                            others + c * g.padded, theirs.finite[j + c] != 0, g.padded,
                            to + r * g.padded);
    };
    if (!second && task.have_near[m * panels + q]) {
      const double* const from = task.near + (m * panels + q) * kTile;
      for (int r = 0; r < count; ++r) {
        for (int64_t c = 0; c < n; ++c) near(r, c, from + r * kScratchStep + c);
      }
    }
    for (int64_t c = 0; second && c < n; ++c) {
      if (!task.have_near[m * panels + c / kTileRows]) continue;
      const double* const from = task.near + m * panels * kTile + c * kScratchStep + q * kTileRows;
      for (int r = 0; r < count; ++r) near(r, c, from + r);
    }

    if (!kSquares) {
      add_weighted_signs<C>(weights, second ? 1 : kScratchStep, second ? kScratchStep : 1, own,
                            count, others, n, g.padded, to);
    } else if (second) {
      const ColumnSums<C> sums(weights, kScratchStep, n);
      for (int r = 0; r < count; ++r) task.pairs.weight_sum[mine.first + at + r] += sums.sum[r];
      add_weighted_rows<C, true>(weights, others, n, g.padded, to);
    } else {
      add_weighted_rows(weights, others, n, g.padded, to);
    }
    for (int r = 0; !whole && r < count; ++r) {
      std::copy_n(to + r * g.padded, x.columns, out + r * x.columns);
    }
  }
}

template <class C>
void meeting_gradients(const MeetingTask<C>& task, int64_t begin, int64_t end) {
  task.squares ? add_meetings<C, true>(task, begin, end) : add_meetings<C, false>(task, begin, end);
}

// Rows [begin, end) of the batch, after the last round.
template <class C>
void finish_meetings(const MeetingTask<C>& task, int64_t begin, int64_t end) {
  const PairTask<C>& pairs = task.pairs;
  const int64_t columns = pairs.x.columns;
  Aligned<C> row(columns);
  for (int64_t i = begin; i < end; ++i) {
    widen_row(pairs.x, i, row.data());
    const bool finite = all_finite(row.data(), columns);
    if (!finite) row.clear();
    C* const out = pairs.gradient ? pairs.gradient + i * columns : nullptr;
    if (out && task.squares) finish_gradient<C, true>(pairs, i, row.data(), out, out);
    if (out && !task.squares) finish_gradient<C, false>(pairs, i, row.data(), out, out);
    if (!finite) spoil(pairs, i);
  }
}
