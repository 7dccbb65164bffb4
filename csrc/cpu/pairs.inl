// The sink of the losses over all pairs: distances become values and weights where they lie, in the
// first-level cache, and the weights go straight into the gradient's product.

template <class C>
struct PairScratch {
  alignas(64) C sums[kTileRows * kScratchStep];  // distances, then weights
  alignas(64) C value[kMaxBlock];
  double near[kMaxBlock];  // weights that go past the product
  alignas(64) Flag<C> flag[kMaxBlock];
  int special[kMaxBlock];  // columns that were flagged
};

template <class C>
using Native = typename Vec<C>::Native;
template <class C>
using Integers = typename Vec<C>::Integer;

// Lanes added up in double.
struct DoubleSum {
  static constexpr int kWidth = Vec<double>::kWidth;
  Native<double> lane[2] = {};
  SIAM_INLINE void add(Native<float> v) {
    typedef float Half __attribute__((vector_size(SIAM_VECTOR_BYTES / 2)));
    Half half[2];
    std::memcpy(half, &v, sizeof(v));
    lane[0] += __builtin_convertvector(half[0], Native<double>);
    lane[1] += __builtin_convertvector(half[1], Native<double>);
  }
  SIAM_INLINE void add(Native<double> v) { lane[0] += v; }
  SIAM_INLINE void add_product(Native<float> a, Native<float> b) {  // exact
    typedef float Half __attribute__((vector_size(SIAM_VECTOR_BYTES / 2)));
    Half x[2], y[2];
    std::memcpy(x, &a, sizeof(a));
    std::memcpy(y, &b, sizeof(b));
    for (int h = 0; h < 2; ++h) {
      lane[h] += __builtin_convertvector(x[h], Native<double>) *
                 __builtin_convertvector(y[h], Native<double>);
    }
  }
  SIAM_INLINE void add_product(Native<double> a, Native<double> b) { lane[0] += a * b; }
  double total() const { return add_lanes(Vec<double>(lane[0] + lane[1])); }
};

// Σ over n elements in one order; in double, which the terms of a loss take.
template <class C>
SIAM_INLINE double sum_row(const C* x, int n) {
  constexpr int kWidth = Vec<C>::kWidth;
  DoubleSum sum;
  int c = 0;
  for (; c + kWidth <= n; c += kWidth) sum.add(load(x + c).v);
  if (c < n) sum.add(load_first(x + c, n - c).v);
  return sum.total();
}
// The same in C, for weights, whose products take no more.
template <class C>
SIAM_INLINE C sum_weights(const C* x, int n) {
  constexpr int kWidth = Vec<C>::kWidth;
  Vec<C> sum;
  int c = 0;
  for (; c + kWidth <= n; c += kWidth) sum = sum + load(x + c);
  if (c < n) sum = sum + load_first(x + c, n - c);
  return add_lanes(sum);
}

// gradient[r, d] += Σ_c weights[r·row_step + c·column_step] · sign(x[r, d] − y[c, d])
template <class C>
__attribute__((noinline)) void add_weighted_signs(const C* weights, int64_t row_step,
                                                  int64_t column_step, const C* x, int count,
                                                  const C* y, int64_t n, int64_t padded,
                                                  C* gradient) {
  constexpr int kWidth = Vec<C>::kWidth, kAtOnce = kTileRows / 2;
  for (int r = 0; r < count; r += kAtOnce) {
    // The last rows of a matrix: those behind are computed from the last one and left.
    const int here = std::min(kAtOnce, count - r);
    int64_t at[kAtOnce];
    for (int u = 0; u < kAtOnce; ++u) at[u] = r + std::min(u, here - 1);
    for (int64_t d = 0; d < padded; d += kWidth) {
      Vec<C> own[kAtOnce], sum[kAtOnce];
#pragma GCC unroll 8
      for (int u = 0; u < kAtOnce; ++u) own[u] = load(x + at[u] * padded + d);
      for (int64_t c = 0; c < n; ++c) {
        const Vec<C> other = load(y + c * padded + d);
#pragma GCC unroll 8
        for (int u = 0; u < kAtOnce; ++u) {
          const Vec<C> w(weights[at[u] * row_step + c * column_step]);
          sum[u] = multiply_add(w, sign(own[u] - other), sum[u]);
        }
      }
      for (int u = 0; u < here; ++u) {
        C* to = gradient + (r + u) * padded + d;
        store(to, load(to) + sum[u]);
      }
    }
  }
}

// What a pair that no product can do gives to one of its ends, row i of x: w · (y − x), or
// w · sign(x − y): as a rule by way of the differences of that row. Isolated: a row that is not
// finite gives nothing to one that is.
template <class C, bool kSquares>
SIAM_INLINE void add_near(double weight, const Matrix& x, int64_t i, bool own_finite,
                          const Matrix& y, int64_t j, const C* other, bool other_finite,
                          Differences<C>& differences, C* gradient, bool isolated = true) {
  if (weight == 0 || (isolated && own_finite && !other_finite)) return;
  const double size = std::fabs(weight);
  if (kSquares && own_finite && other_finite && size >= SafeRange<C>::kLow &&
      size <= SafeRange<C>::kHigh) {
    return differences.add(static_cast<C>(weight), other);
  }
  for (int64_t d = 0; d < x.columns; ++d) {
    const double difference = element(y, j, d) - element(x, i, d);
    const double step = kSquares ? difference : double((difference < 0) - (difference > 0));
    gradient[d] += static_cast<C>(weight * step);
  }
}

// The gradient of a row from Σ w · y: d(d²)/dx = 2(x − y). A row that is not finite is zeros in x.
template <class C, bool kSquares>
SIAM_INLINE void finish_gradient(double weight, const C* x, const C* sum, int64_t columns, C* out) {
  if (kSquares) {
    for (int64_t d = 0; d < columns; ++d) out[d] = static_cast<C>(2 * (weight * x[d] - sum[d]));
  } else if (out != sum) {
    std::copy_n(sum, columns, out);
  }
}

// An anchor that holds NaN spoils its own value and gradient if it meets anybody, and nobody
// else's. A row of ref is no anchor: it has no loss to spoil, and so no gradient.
template <class C>
inline void spoil(const PairTask<C>& task, int64_t i) {
  const int64_t self = i + task.self;
  const int64_t met = task.ref.rows - (self >= 0 && self < task.ref.rows);
  if (!task.values || met <= 0 || !has_nan(task.x, i)) return;
  task.values[i] = std::numeric_limits<double>::quiet_NaN();
  if (!task.gradient) return;
  std::fill_n(task.gradient + i * task.x.columns, task.x.columns,
              std::numeric_limits<C>::quiet_NaN());
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
    return task.weight_share * (own + other);
  }

  // A pair beyond C, in double: its weight. One with NaN is only counted.
  __attribute__((noinline, cold)) double extreme(int64_t i, int64_t column, bool row_finite,
                                                 bool column_finite, Label label,
                                                 BatchStats& stats) const {
    const Matrix &x = task.x, &y = task.ref;
    if ((!row_finite && has_nan(x, i)) || (!column_finite && has_nan(y, column))) {
      ++stats.active;
      return 0;
    }
    const double sum[1] = {exact_sum(x, i, y, column, kSquares)};
    const auto terms = F::template evaluate<Row>(params, sum, label);
    if (task.values) task.values[i] += task.share * terms.value;
    count(stats, terms.value, F::template distances<Row>(params, sum).first, label);
    return terms.slope[0] * factor(i, column);
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

  // Values are added up, and sums become weights. Weights of pairs that no product can do go to
  // `near` instead, if there is one; whether it was filled.
  bool run(const RowPanel<C>& panel, int r, int64_t j, int n, C* sums, double* near,
           PairScratch<C>& scratch, BatchStats& stats) const {
    const Packed<C>& chunk = task.chunk;
    const int64_t i = panel.first + r;
    const int64_t first = chunk.first + j;
    const int32_t own = task.row_class[i];
    const int32_t* classes = task.column_class + first;
    const C* x = panel.rows + r * g.padded;
    const C* y = chunk.rows + j * g.padded;

    const bool special =
        kSquares ? expand_row(chunk.norms + j, panel.norms[r], threshold, n, sums, scratch.flag)
                 : check_row(chunk.norms + j, panel.norms[r], n, sums, scratch.flag);
    const int64_t self = i + task.self - first;
    int close = 0;         // flagged pairs that are computed with the others,
    int dead = kMaxBlock;  // and, from the end, those that are done or don't exist
    int* const list = scratch.special;
    if (self >= 0 && self < n) {
      scratch.flag[self] = 0;
      list[--dead] = static_cast<int>(self);
    }
    bool filled = false;
    if (special) {
      if (near) std::fill_n(near, n, 0.0);
      each_flagged<C>(scratch.flag, n, [&](int c) {
        filled = near;
        const Label label = classes[c] == own ? Label::kGenuine : Label::kImpostor;
        Rescue kind = Rescue::kExtreme;
        if (kSquares && panel.finite[r] && chunk.finite[j + c]) {
          kind = rescue(x, y + c * g.padded, g.padded, sums + c);
        }
        if (kind == Rescue::kClose) {
          list[close++] = c;
        } else {
          list[--dead] = c;
          const double weight =
              extreme(i, first + c, panel.finite[r], chunk.finite[j + c], label, stats);
          if (near) near[c] = weight;
        }
      });
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
      const C constant = static_cast<C>(task.weight_share * (task.row_factor + task.column_factor));
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
    if (!near) return false;
    for (int k = 0; k < close; ++k) {
      near[list[k]] = sums[list[k]];
      sums[list[k]] = C(0);
    }
    if (kSquares) task.weight_sum[i] += sum_weights(sums, n);
    return filled;
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
      load_panel(task.x, g, (p + q) * kTileRows, kSquares && task.chunk.pairs,
                 rows.data() + q * panel_size, panel[q]);
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
        const C* others = task.chunk.rows + j * g.padded;
        for (int r = 0; r < panel[q].count; ++r) {
          if (!row.run(panel[q], r, j, n, scratch->sums + r * kScratchStep,
                       gradient ? scratch->near : nullptr, *scratch, stats)) {
            continue;
          }
          C* const to = gradient + r * g.padded;
          Differences<C> differences(panel[q].rows + r * g.padded, g.padded, to);
          for (int c = 0; c < n; ++c) {
            add_near<C, kSquares>(scratch->near[c], task.x, panel[q].first + r, panel[q].finite[r],
                                  task.ref, task.chunk.first + j + c, others + c * g.padded,
                                  task.chunk.finite[j + c], differences, to);
          }
          differences.flush();
        }
        if (!gradient) continue;
        for (int r = panel[q].count; r < kTileRows; ++r) {
          std::fill_n(scratch->sums + r * kScratchStep, n, C(0));
        }
        if (kSquares) {
          add_weighted_rows(scratch->sums, others, n, g.padded, gradient);
        } else {
          add_weighted_signs<C>(scratch->sums, kScratchStep, 1, panel[q].rows, panel[q].count,
                                others, n, g.padded, gradient);
        }
      }
    }
    for (int q = 0; q < group; ++q) {
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r;
        const C* sum = gradients.data() + q * panel_size + r * g.padded;
        if (task.gradient && task.last_chunk) {
          finish_gradient<C, kSquares>(task.weight_sum[i], panel[q].rows + r * g.padded, sum,
                                       columns, task.gradient + i * columns);
        } else if (task.gradient) {
          std::copy_n(sum, columns, task.gradient + i * columns);
        }
        if (task.last_chunk && !panel[q].finite[r]) spoil(task, i);
      }
    }
  }
}

template <class C>
void spoil_anchors(const PairTask<C>& task, int64_t begin, int64_t end) {
  Aligned<C> row(task.x.columns);
  for (int64_t i = begin; i < end; ++i) {
    widen_row(task.x, i, row.data());
    if (!all_finite(row.data(), task.x.columns)) spoil(task, i);
  }
}

// The row that the parameters choose, as a type: run(Row{}).
template <class Run, class Row, class... Rest>
void pick_row(int index, const Run& run, math::RowList<Row, Rest...>) {
  if constexpr (sizeof...(Rest) > 0) {
    if (index > 0) return pick_row(index - 1, run, math::RowList<Rest...>{});
  }
  run(Row{});
}

template <class F, class C>
void batch_pairs(const PairTask<C>& task, const void* params, int64_t begin, int64_t end) {
  if constexpr (F::kHasTarget) {
    const auto& own = *static_cast<const typename F::Params*>(params);
    const auto run = [&](auto row) { run_pairs<F, decltype(row), C>(task, own, begin, end); };
    pick_row(F::row(own), run, typename F::Rows{});
  }
}
