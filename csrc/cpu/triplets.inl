// Triplets of a batch: rows of distances, what mining.inl makes of them, and the gradients.
//
// An anchor needs the whole row of its distances, so a group of anchors has its rows in a bounded
// workspace. `anchor_rows` fills them and turns each into weights; `anchor_gradients` adds what its
// pairs give to the anchor, and `column_rows` what they give to the other end, in the order of the
// anchors. A batch that meets itself and fits as a whole needs no column_rows: the weights of both
// directions are one product. Hard and easy mining keep two columns an anchor instead, which
// `add_picks` hands to their owners. Threads own the rows that they write.

// to[d] += weight · (y[d] − x[d]) in double, from the tensors themselves.
template <class C>
__attribute__((noinline, cold)) void add_exact_difference(double weight, const Matrix& x, int64_t i,
                                                          const Matrix& y, int64_t j, C* to) {
  for (int64_t d = 0; d < x.columns; ++d) {
    to[d] += static_cast<C>(weight * (element(y, j, d) - element(x, i, d)));
  }
}

// Panels of anchors [begin, end), counted from the group's first anchor.
template <class C>
void anchor_rows(const TripletTask<C>& task, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns, count = task.ref.rows, step = task.row_step;
  const TileGeometry g = tile_geometry<C>(columns);
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  const bool dense = task.mining == Mining::kAll || task.mining == Mining::kSemihard;
  const bool soft = task.params.soft && task.mining == Mining::kAll;
  const bool backward = task.weights_wanted;
  const int64_t panel_size = kTileRows * g.padded;
  Aligned<C> left(kPanelGroup * left_size<C>(columns)), rows(kPanelGroup * panel_size);
  Aligned<C> sums(kTileRows * kScratchStep);
  Aligned<C> work(soft ? 5 * step : dense && !task.params.squared ? step : 0);
  // Rows of distances: the group's own where they become weights, else this thread's.
  Aligned<C> local(task.weights ? 0 : kPanelGroup * kTileRows * step);
  Flag<C> flag[kMaxBlock];
  AnchorScratch<C> scratch;
  RowPanel<C> panel[kPanelGroup];
  const Packed<C>& all = task.refs;

  for (int64_t p = begin; p < end; p += kPanelGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kPanelGroup, end - p));
    const int64_t offset = p * kTileRows;
    C* const matrix = task.weights ? task.weights + offset * step : local.data();
    uint8_t* const flags = task.weights ? task.flags + offset * step : nullptr;
    for (int q = 0; q < group; ++q) {
      panel[q].left = left.data() + q * left_size<C>(columns);
      load_panel(task.x, g, task.group_first + (p + q) * kTileRows, task.refs.pairs,
                 rows.data() + q * panel_size, panel[q]);
      if (task.group_rows) {
        std::copy_n(panel[q].rows, panel_size,
                    task.group_rows + (offset + q * kTileRows) * g.padded);
      }
    }
    for (int64_t j = 0; j < count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, count - j));
      for (int q = 0; q < group; ++q) {
        tile_sums<C, true>(panel[q], all, j, columns, round_up(n, kTileColumns<C>), sums.data());
        for (int r = 0; r < panel[q].count; ++r) {
          C* row = sums.data() + r * kScratchStep;
          const bool special =
              finish_distances(task.x, task.ref, panel[q], r, all, j, n, g, threshold, row, flag);
          const int64_t at = (q * kTileRows + r) * step + j;
          std::copy_n(row, n, matrix + at);
          if (!flags) continue;
          if (special) {
            for (int c = 0; c < n; ++c) flags[at + c] = static_cast<uint8_t>(flag[c]);
          } else {
            std::memset(flags + at, 0, n);
          }
        }
      }
    }
    for (int q = 0; q < group; ++q) {
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r, self = i + task.self;
        C* const row = matrix + (q * kTileRows + r) * step;
        std::fill(row + count, row + step, std::numeric_limits<C>::quiet_NaN());
        Anchor<C> anchor{task,
                         scratch,
                         i,
                         {row, task.column_class, count, task.row_class[i]},
                         task.upstream ? task.upstream[i] : C(1)};
        C* const weights = task.weights && backward ? row : nullptr;
        task.finite_rows[i] = panel[q].finite[r];
        if (!panel[q].finite[r] && has_nan(task.x, i)) {
          anchor.spoil(self);
          anchor.clear(weights);
        } else {
          anchor.gather_positives(self >= 0 && self < count ? self : -1);
          if (task.mining == Mining::kHard || task.mining == Mining::kEasyPositive) {
            anchor.pick(task.mining == Mining::kHard);
          } else if (task.mining == Mining::kSemihard) {
            // The row of distances is read to the end before its weights are written.
            anchor.semihard(weights);
          } else if (soft) {
            anchor.soft(weights, work.data());
          } else if (task.params.squared) {
            anchor.all(row, weights);
          } else {
            for (int64_t c = 0; c < step; ++c) work.data()[c] = std::sqrt(row[c]);
            anchor.all(work.data(), weights);
          }
        }
        anchor.stats.valid = anchor.terms;
        task.values[i] = anchor.value;
        task.stats[i] = anchor.stats;
        if (weights) std::fill(row + count, row + step, C(0));
        anchor.spoil_gradient();
      }
    }
  }
}

// visit(c) for every c in [0, n) whose flag is set; few are.
template <class Visit>
SIAM_INLINE void each_flagged(const uint8_t* flags, int64_t n, const Visit& visit) {
  for (int64_t c = 0; c < n;) {
    uint64_t eight = 0;
    if (c + 8 <= n) std::memcpy(&eight, flags + c, sizeof(eight));
    if (c + 8 <= n && eight == 0) {
      c += 8;
      continue;
    }
    for (const int64_t end = std::min(c + 8, n); c < end; ++c) {
      if (flags[c]) visit(c);
    }
  }
}

// to[r·kScratchStep + c] += from[c·step + r], r in [0, rows), c in [0, n). A vector of `from` may
// reach past the rows.
template <class C>
SIAM_INLINE void add_transposed(const C* from, int64_t step, int n, int rows, C* to) {
  constexpr int kWidth = Vec<C>::kWidth;
  C tile[kWidth * kWidth];
  int c = 0;
  for (; c + kWidth <= n; c += kWidth) {
    for (int r = 0; r < rows; r += kWidth) {
      transpose(from + c * step + r, step, tile, kWidth);
      for (int k = 0; k < std::min(kWidth, rows - r); ++k) {
        C* const row = to + (r + k) * kScratchStep + c;
        store(row, load(row) + load(tile + k * kWidth));
      }
    }
  }
  for (; c < n; ++c) {
    for (int r = 0; r < rows; ++r) to[r * kScratchStep + c] += from[c * step + r];
  }
}

// What the pairs of a group give to its own rows, panels [begin, end) of the group. With
// task.whole a row gets what it gives as an anchor and as a positive or negative.
template <class C>
void anchor_gradients(const TripletTask<C>& task, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns, count = task.ref.rows, step = task.row_step;
  const TileGeometry g = tile_geometry<C>(columns);
  const Packed<C>& all = task.refs;
  Aligned<C> gradient(kTileRows * g.padded), sums(kTileRows * kScratchStep);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * kTileRows;
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, task.group_count - first));
    const C* const own = (task.whole ? all.rows : task.group_rows) + first * g.padded;
    double weight_sum[kTileRows] = {};
    gradient.clear();
    for (int64_t j = 0; j < count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, count - j));
      for (int r = 0; r < rows; ++r) {
        std::copy_n(task.weights + (first + r) * step + j, n, sums.data() + r * kScratchStep);
      }
      if (task.whole) add_transposed(task.weights + j * step + first, step, n, rows, sums.data());
      for (int r = 0; r < rows; ++r) {
        const int64_t i = task.group_first + first + r;
        const bool finite = task.row_finite(i);
        C* const row = sums.data() + r * kScratchStep;
        C* const to = gradient.data() + r * g.padded;
        const uint8_t* const flags = task.flags + (first + r) * step + j;
        Differences<C> differences(own + r * g.padded, g.padded, to);
        each_flagged(flags, n, [&](int64_t c) {
          const C weight = row[c];
          row[c] = 0;
          if (weight == 0) return;
          if (flags[c] == 1) {
            differences.add(weight, all.rows + (j + c) * g.padded);
          } else if (!finite || all.finite[j + c]) {
            add_exact_difference(weight, task.x, i, task.ref, j + c, to);
          }
        });
        differences.flush();
        weight_sum[r] += sum_weights(row, n);
      }
      add_weighted_rows(sums.data(), all.rows + j * g.padded, n, g.padded, gradient.data());
    }
    for (int r = 0; r < rows; ++r) {
      C* out = task.anchor_gradient + (task.group_first + first + r) * columns;
      const C* sum = gradient.data() + r * g.padded;
      for (int64_t d = 0; d < columns; ++d) {
        out[d] += static_cast<C>(task.factor * (weight_sum[r] * own[r * g.padded + d] - sum[d]));
      }
    }
  }
}

// What the pairs of a group of anchors give to the panels [begin, end) of columns.
template <class C>
void column_rows(const TripletTask<C>& task, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns, step = task.row_step;
  const TileGeometry g = tile_geometry<C>(columns);
  const Packed<C>& all = task.refs;
  Aligned<C> gradient(kTileRows * g.padded);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * kTileRows;
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, task.ref.rows - first));
    gradient.clear();
    double weight_sum[kTileRows] = {};
    for (int64_t a = 0; a < task.group_count; ++a) {
      C* const weights = task.weights + a * step + first;
      uint8_t* const flags = task.flags + a * step + first;
      const int64_t i = task.group_first + a;
      each_flagged(flags, count, [&](int64_t r) {
        const C weight = weights[r];
        weights[r] = 0;  // this thread's own column, whose product comes next
        if (weight == 0) return;
        C* to = gradient.data() + r * g.padded;
        if (flags[r] == 1) {
          add_difference(weight, all.rows + (first + r) * g.padded, task.group_rows + a * g.padded,
                         g.padded, to);
        } else if (!all.finite[first + r] || task.row_finite(i)) {
          add_exact_difference(weight, task.ref, first + r, task.x, i, to);
        }
      });
      for (int r = 0; r < count; ++r) weight_sum[r] += weights[r];
    }
    add_weighted_rows<C, true>(task.weights + first, task.group_rows, task.group_count, g.padded,
                               gradient.data(), step);
    for (int r = 0; r < count; ++r) {
      C* out = task.column_gradient + (first + r) * columns;
      const C* own = all.rows + (first + r) * g.padded;
      const C* sum = gradient.data() + r * g.padded;
      for (int64_t d = 0; d < columns; ++d) {
        out[d] += static_cast<C>(task.factor * (weight_sum[r] * own[d] - sum[d]));
      }
    }
  }
}

// A row as C and whether it is finite; from the packed columns where they are the same matrix.
template <class C>
struct PickedRow {
  const C* row;
  bool finite;
  PickedRow(const TripletTask<C>& task, const TileGeometry& g, bool ref, int64_t i, C* memory) {
    if (ref || task.x.data == task.ref.data) {
      row = task.refs.rows + i * g.padded;
      finite = task.refs.finite[i] != 0;
    } else {
      widen_row(task.x, i, memory);
      row = memory;
      finite = all_finite(memory, task.x.columns);
    }
  }
};

// The gradients of hard and easy mining: rows [begin, end) of one side. `start` and `entries` list,
// for each of them, the pairs it is an end of, in ascending order of the anchors.
template <class C>
void add_picks(const TripletTask<C>& task, const int64_t* start, const Pick<C>* entries,
               bool anchors, C* gradient, int64_t begin, int64_t end) {
  const Matrix& own = anchors ? task.x : task.ref;
  const Matrix& other = anchors ? task.ref : task.x;
  const int64_t columns = own.columns;
  const TileGeometry g = tile_geometry<C>(columns);
  Aligned<C> x(g.padded), y(g.padded), sum(g.padded);
  for (int64_t i = begin; i < end; ++i) {
    if (start[i] == start[i + 1]) continue;
    const PickedRow<C> mine(task, g, !anchors, i, x.data());
    sum.clear();
    for (int64_t k = start[i]; k < start[i + 1]; ++k) {
      const Pick<C>& pick = entries[k];
      if (pick.weight == 0) continue;
      const PickedRow<C> theirs(task, g, anchors, pick.row, y.data());
      if (mine.finite && theirs.finite) {
        add_difference(-2 * pick.weight, mine.row, theirs.row, g.padded, sum.data());
      } else if (!mine.finite) {
        add_exact_difference(-2 * double(pick.weight), own, i, other, pick.row, sum.data());
      }
    }
    C* const out = gradient + i * columns;
    for (int64_t d = 0; d < columns; ++d) out[d] += sum.data()[d];
  }
}
