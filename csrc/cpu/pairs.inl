// The sink of the losses over all pairs: distances become values and weights where they lie, in the
// first-level cache, and the weights go straight into the gradient's product.

template <class C>
struct PairScratch {
  alignas(64) C sums[kTileRows * kScratchStep];  // distances, then weights
  alignas(64) C value[kMaxBlock];
  alignas(64) Flag<C> flag[kMaxBlock];
  int special[kMaxBlock];  // columns that were flagged
};

// Σ over n elements in double, in one order.
template <class C>
SIAM_INLINE double sum_row(const C* x, int n) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  int c = 0;
  for (; c + kLanes <= n; c += kLanes) {
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) lane[l] += x[c + l];
  }
  for (int l = 0; c < n; ++c, ++l) lane[l] += x[c];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

// gradient[r, d] += Σ_c weights[r, c] · sign(x[r, d] − y[c, d])
template <class C>
__attribute__((noinline)) void add_weighted_signs(const C* weights, const C* x, const C* y,
                                                  int64_t n, int64_t padded, C* gradient) {
  constexpr int kWidth = Vec<C>::kWidth, kAtOnce = kTileRows / 2;
  for (int r = 0; r < kTileRows; r += kAtOnce) {
    for (int64_t d = 0; d < padded; d += kWidth) {
      Vec<C> own[kAtOnce], sum[kAtOnce];
#pragma GCC unroll 8
      for (int u = 0; u < kAtOnce; ++u) own[u] = load(x + (r + u) * padded + d);
      for (int64_t c = 0; c < n; ++c) {
        const Vec<C> other = load(y + c * padded + d);
#pragma GCC unroll 8
        for (int u = 0; u < kAtOnce; ++u) {
          const Vec<C> w(weights[(r + u) * kScratchStep + c]);
          sum[u] = multiply_add(w, sign(own[u] - other), sum[u]);
        }
      }
#pragma GCC unroll 8
      for (int u = 0; u < kAtOnce; ++u) {
        C* to = gradient + (r + u) * padded + d;
        store(to, load(to) + sum[u]);
      }
    }
  }
}

// One row against the columns [j, j + n) of the chunk.
template <class F, class Row, class C>
struct PairRow {
  const PairTask<C>& task;
  const typename F::Params& params;
  const TileGeometry& g;
  C threshold;
  static constexpr bool kSquares = Row::Element::kSquares;

  double factor(int64_t i, int64_t column) const {
    const double own = task.row_upstream ? task.row_upstream[i] : task.row_factor;
    const double other = task.column_upstream ? task.column_upstream[column] : task.column_factor;
    return task.share * (own + other);
  }

  // A pair beyond C: counted and differentiated in double. A row that holds NaN spoils its own
  // value and gradient, and nobody else's.
  __attribute__((noinline, cold)) void extreme(int64_t i, int64_t column, bool row_finite,
                                               bool column_finite, Label label, C* gradient,
                                               BatchStats& stats) const {
    const Matrix &x = task.x, &y = task.ref;
    if ((!row_finite && has_nan(x, i)) || (!column_finite && has_nan(y, column))) {
      ++stats.active;
      if (row_finite || !has_nan(x, i)) return;
      // A row of ref is no anchor: it has no loss to spoil, and so no gradient.
      if (!task.values) return;
      task.values[i] = std::numeric_limits<double>::quiet_NaN();
      if (gradient) std::fill_n(gradient, g.padded, std::numeric_limits<C>::quiet_NaN());
      return;
    }
    const double sum[1] = {exact_sum(x, i, y, column, kSquares)};
    const auto terms = F::template evaluate<Row>(params, sum, label);
    if (task.values) task.values[i] += task.share * terms.value;
    count(stats, terms.value, F::template distances<Row>(params, sum).first, label);
    const double weight = terms.slope[0] * factor(i, column);
    if (!gradient || weight == 0 || (row_finite && !column_finite)) return;
    for (int64_t d = 0; d < x.columns; ++d) {
      const double difference = element(y, column, d) - element(x, i, d);
      const double step = kSquares ? difference : double((difference < 0) - (difference > 0));
      gradient[d] += static_cast<C>(weight * step);
    }
  }

  static void count(BatchStats& stats, double value, double distance, Label label) {
    stats.active += value != 0;
    if (label == Label::kGenuine) {
      ++stats.positives;
      stats.positive_distance += distance;
    } else {
      ++stats.negatives;
      stats.negative_distance += distance;
      stats.collapsed += distance == 0;
    }
  }

  void run(const RowPanel<C>& panel, int r, int64_t j, int n, PairScratch<C>& scratch, C* gradient,
           BatchStats& stats) const {
    const Packed<C>& chunk = task.chunk;
    const int64_t i = panel.first + r;
    const int64_t first = chunk.first + j;
    const int32_t own = task.row_class[i];
    const int32_t* classes = task.column_class + first;
    C* sums = scratch.sums + r * kScratchStep;
    const C* x = panel.rows + r * g.padded;
    const C* y = chunk.rows + j * g.padded;

    const bool special =
        kSquares ? expand_row(chunk.norms + j, panel.norms[r], threshold, n, sums, scratch.flag)
                 : check_row(chunk.norms + j, panel.norms[r], n, sums, scratch.flag);
    const int64_t self = i + task.self - first;
    int close = 0;         // flagged pairs whose gradient is formed directly,
    int dead = kMaxBlock;  // and, from the end, those that are done or don't exist
    int* const list = scratch.special;
    if (self >= 0 && self < n) {
      scratch.flag[self] = 0;
      list[--dead] = static_cast<int>(self);
    }
    if (special) {
      for (int c = 0; c < n; ++c) {
        if (!scratch.flag[c]) continue;
        const Label label = classes[c] == own ? Label::kGenuine : Label::kImpostor;
        Rescue kind = Rescue::kExtreme;
        if (kSquares && panel.finite[r] && chunk.finite[j + c]) {
          kind = rescue(x, y + c * g.padded, g.padded, sums + c);
        }
        if (kind == Rescue::kClose) {
          list[close++] = c;
        } else {
          list[--dead] = c;
          extreme(i, first + c, panel.finite[r], chunk.finite[j + c], label, gradient, stats);
        }
      }
    }
    for (int k = dead; k < kMaxBlock; ++k) sums[list[k]] = C(1);

    if (task.want_stats) {
      for (int k = dead; k < kMaxBlock; ++k) scratch.flag[list[k]] = 2;
      for (int c = 0; c < n; ++c) {
        if (scratch.flag[c] == 2) continue;
        const C sum[1] = {sums[c]};
        const Label label = classes[c] == own ? Label::kGenuine : Label::kImpostor;
        count(stats, F::template evaluate<Row>(params, sum, label).value,
              F::template distances<Row>(params, sum).first, label);
      }
    }

    // The hot loop: compiled to SIMD code from the formula's own text.
    const typename F::Params local = params;
    if (task.column_upstream || task.row_upstream) {
      for (int c = 0; c < n; ++c) {
        const C sum[1] = {sums[c]};
        const auto terms = F::template evaluate<Row>(
            local, sum, classes[c] == own ? Label::kGenuine : Label::kImpostor);
        scratch.value[c] = terms.value;
        sums[c] = terms.slope[0];
      }
      for (int c = 0; c < n; ++c) sums[c] *= static_cast<C>(factor(i, first + c));
    } else {
      const C constant = static_cast<C>(task.share * (task.row_factor + task.column_factor));
      C* const value = scratch.value;
      for (int c = 0; c < n; ++c) {
        const C sum[1] = {sums[c]};
        const auto terms = F::template evaluate<Row>(
            local, sum, classes[c] == own ? Label::kGenuine : Label::kImpostor);
        value[c] = terms.value;
        sums[c] = terms.slope[0] * constant;
      }
    }
    for (int k = dead; k < kMaxBlock; ++k) scratch.value[list[k]] = sums[list[k]] = C(0);

    if (task.values) task.values[i] += task.share * sum_row(scratch.value, n);
    if (!gradient) return;
    for (int k = 0; k < close; ++k) {
      const C weight = sums[list[k]];
      sums[list[k]] = C(0);
      if (weight != 0) add_difference(weight, x, y + list[k] * g.padded, g.padded, gradient);
    }
    if (kSquares) task.weight_sum[i] += sum_row(sums, n);
  }
};

template <class F, class Row, class C>
void run_pairs(const PairTask<C>& task, const typename F::Params& params, int64_t begin,
               int64_t end) {
  constexpr bool kSquares = Row::Element::kSquares;
  const int64_t columns = task.x.columns;
  const TileGeometry g = tile_geometry<C>(columns);
  const double roundoff = std::numeric_limits<C>::epsilon() / 2;
  const PairRow<F, Row, C> row{task, params, g,
                               static_cast<C>(math::tile_rescue_threshold(columns, roundoff))};
  const int64_t panel_size = kTileRows * g.padded;
  Aligned<C> left(kPanelGroup * left_size<C>(columns)), rows(kPanelGroup * panel_size);
  Aligned<C> gradients(task.gradient ? kPanelGroup * panel_size : 0);
  Aligned<PairScratch<C>> memory(1);
  PairScratch<C>* const scratch = memory.data();
  RowPanel<C> panel[kPanelGroup];

  for (int64_t p = begin; p < end; p += kPanelGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kPanelGroup, end - p));
    gradients.clear();
    for (int q = 0; q < group; ++q) {
      panel[q].left = left.data() + q * left_size<C>(columns);
      panel[q].rows = rows.data() + q * panel_size;
      load_panel(task.x, g, (p + q) * kTileRows, kSquares && task.chunk.pairs, panel[q]);
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r;
        if (task.first_chunk) {
          if (task.values) task.values[i] = 0;
          if (task.gradient && kSquares) task.weight_sum[i] = 0;
        } else if (task.gradient) {
          std::copy_n(task.gradient + i * columns, columns,
                      gradients.data() + q * panel_size + r * g.padded);
        }
      }
      if (task.first_chunk && task.stats) task.stats[p + q] = BatchStats{};
    }
    for (int64_t j = 0; j < task.chunk.count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, task.chunk.count - j));
      for (int q = 0; q < group; ++q) {
        C* gradient = task.gradient ? gradients.data() + q * panel_size : nullptr;
        tile_sums<C, kSquares>(panel[q], task.chunk, j, columns, round_up(n, kTileColumns<C>),
                               scratch->sums);
        BatchStats ignored{};
        BatchStats& stats = task.stats ? task.stats[p + q] : ignored;
        for (int r = 0; r < panel[q].count; ++r) {
          row.run(panel[q], r, j, n, *scratch, gradient ? gradient + r * g.padded : nullptr, stats);
        }
        if (!gradient) continue;
        for (int r = panel[q].count; r < kTileRows; ++r) {
          std::fill_n(scratch->sums + r * kScratchStep, n, C(0));
        }
        const C* others = task.chunk.rows + j * g.padded;
        if (kSquares) {
          add_weighted_rows(scratch->sums, others, n, g.padded, gradient);
        } else {
          add_weighted_signs(scratch->sums, panel[q].rows, others, n, g.padded, gradient);
        }
      }
    }
    if (!task.gradient) continue;
    for (int q = 0; q < group; ++q) {
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r;
        const C* x = panel[q].rows + r * g.padded;
        const C* sum = gradients.data() + q * panel_size + r * g.padded;
        C* out = task.gradient + i * columns;
        if (!task.last_chunk) {
          std::copy_n(sum, columns, out);
        } else if (kSquares) {
          // d(d²)/dx = 2(x − y). A row that is not finite stands as zeros in x.
          const double weight = task.weight_sum[i];
          for (int64_t d = 0; d < columns; ++d) {
            out[d] = static_cast<C>(2 * task.gradient_scale * (weight * x[d] - sum[d]));
          }
        } else {
          for (int64_t d = 0; d < columns; ++d) {
            out[d] = static_cast<C>(task.gradient_scale * sum[d]);
          }
        }
      }
    }
  }
}

template <class F, class C, class Row, class... Rest>
void pick_row(int index, const PairTask<C>& task, const typename F::Params& params, int64_t begin,
              int64_t end, math::RowList<Row, Rest...>) {
  if constexpr (sizeof...(Rest) > 0) {
    if (index > 0) {
      return pick_row<F, C>(index - 1, task, params, begin, end, math::RowList<Rest...>{});
    }
  }
  run_pairs<F, Row, C>(task, params, begin, end);
}

template <class F, class C>
void batch_pairs(const PairTask<C>& task, const typename F::Params& params, int64_t begin,
                 int64_t end) {
  if constexpr (F::kHasTarget) {
    pick_row<F, C>(F::row(params), task, params, begin, end, typename F::Rows{});
  }
}
