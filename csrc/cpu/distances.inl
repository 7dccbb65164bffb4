// Distances of all pairs as a tensor, and the gradient of a weighted sum of them: squared_cdist.

template <class C>
inline void store_as(DType type, void* to, int64_t at, C value) {
  switch (type) {
    case DType::kFloat16: static_cast<math::Half*>(to)[at] = math::narrow<math::Half>(value); break;
    case DType::kBFloat16:
      static_cast<math::BFloat16*>(to)[at] = math::narrow<math::BFloat16>(value);
      break;
    case DType::kFloat32: static_cast<float*>(to)[at] = static_cast<float>(value); break;
    case DType::kFloat64: static_cast<double*>(to)[at] = value; break;
  }
}

// d² of one row from the columns [j, j + n) of the chunk, in place of the products, every pair as
// exact as promised. Pairs left in flag were rescued: 1, or 2 where C can't hold the gradient's
// terms either. A pair with NaN, or inf − inf, is NaN.
template <class C>
SIAM_INLINE bool finish_distances(const Matrix& x, const Matrix& ref, const RowPanel<C>& panel,
                                  int r, const Packed<C>& chunk, int64_t j, int n,
                                  const TileGeometry& g, C threshold, C* sums, Flag<C>* flag) {
  if (!expand_row(chunk.norms + j, panel.norms[r], threshold, n, sums, flag)) return false;
  const C* own = panel.rows + r * g.padded;
  for (int c = 0; c < n; ++c) {
    if (!flag[c]) continue;
    const bool finite = panel.finite[r] && chunk.finite[j + c];
    if (finite &&
        rescue(own, chunk.rows + (j + c) * g.padded, g.padded, sums + c) == Rescue::kClose) {
      continue;
    }
    flag[c] = 2;
    sums[c] = static_cast<C>(exact_sum(x, panel.first + r, ref, chunk.first + j + c, true));
  }
  return true;
}

template <class C>
void distances(const DistanceTask<C>& task, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns, others = task.ref.rows;
  const TileGeometry g = tile_geometry<C>(columns);
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  const int64_t panel_size = kTileRows * g.padded;
  Aligned<C> left(kPanelGroup * left_size<C>(columns)), rows(kPanelGroup * panel_size);
  Aligned<C> sums(kTileRows * kScratchStep);
  Flag<C> flag[kMaxBlock];
  RowPanel<C> panel[kPanelGroup];
  for (int64_t p = begin; p < end; p += kPanelGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kPanelGroup, end - p));
    for (int q = 0; q < group; ++q) {
      panel[q].left = left.data() + q * left_size<C>(columns);
      load_panel(task.x, g, (p + q) * kTileRows, task.chunk.pairs, rows.data() + q * panel_size,
                 panel[q]);
    }
    for (int64_t j = 0; j < task.chunk.count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, task.chunk.count - j));
      for (int q = 0; q < group; ++q) {
        tile_sums<C, true>(panel[q], task.chunk, j, columns, round_up(n, kTileColumns<C>),
                           sums.data());
        for (int r = 0; r < panel[q].count; ++r) {
          C* const row = sums.data() + r * kScratchStep;
          finish_distances(task.x, task.ref, panel[q], r, task.chunk, j, n, g, threshold, row,
                           flag);
          const int64_t at = (panel[q].first + r) * others + task.chunk.first + j;
          if (sizeof(C) == 8 || task.x.dtype == DType::kFloat32) {
            std::copy_n(row, n, static_cast<C*>(task.distances) + at);
          } else {
            for (int c = 0; c < n; ++c) store_as(task.x.dtype, task.distances, at + c, row[c]);
          }
        }
      }
    }
  }
}

// to[r·kScratchStep + c] = from[(first + r)·row_step + (column + c)·column_step], in the order in
// which it lies in memory.
template <class C, class T>
inline void load_tile(const T* from, const DistanceTask<C>& task, int64_t first, int count,
                      int64_t column, int n, C* to) {
  from += first * task.row_step + column * task.column_step;
  if (task.column_step == 1) {
    for (int r = 0; r < count; ++r) {
      for (int c = 0; c < n; ++c) {
        to[r * kScratchStep + c] = static_cast<C>(math::widen(from[r * task.row_step + c]));
      }
    }
    return;
  }
  constexpr int kAhead = 8;
  for (int c = 0; c < n; ++c) {
    const T* const line = from + c * task.column_step;
    // Every line is on a page of its own, where the hardware does not look ahead.
    if (c + kAhead < n) {
      const T* const ahead = line + kAhead * task.column_step;
      for (int r = 0; r < count; r += 64 / static_cast<int>(sizeof(T))) {
        __builtin_prefetch(ahead + r);
      }
    }
    for (int r = 0; r < count; ++r) {
      to[r * kScratchStep + c] = static_cast<C>(math::widen(line[r * task.row_step]));
    }
  }
}
template <class C>
inline void load_tile(const void* from, const DistanceTask<C>& task, int64_t first, int count,
                      int64_t column, int n, C* to) {
  switch (task.x.dtype) {
    case DType::kFloat16:
      return load_tile(static_cast<const math::Half*>(from), task, first, count, column, n, to);
    case DType::kBFloat16:
      return load_tile(static_cast<const math::BFloat16*>(from), task, first, count, column, n, to);
    case DType::kFloat32:
      return load_tile(static_cast<const float*>(from), task, first, count, column, n, to);
    case DType::kFloat64:
      return load_tile(static_cast<const double*>(from), task, first, count, column, n, to);
  }
}

// gradient = 2(Σ_c w·x − Σ_c w·y_c): one product. The distances that forward made say which pairs
// are too close for it and get theirs from the difference.
template <class C>
void distance_gradients(const DistanceTask<C>& task, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns;
  const TileGeometry g = tile_geometry<C>(columns);
  // A little more than the forward pass's own, since the distances may be rounded to half.
  const C threshold = static_cast<C>(
      1.02 * math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  const int64_t panel_size = kTileRows * g.padded;
  Aligned<C> left(left_size<C>(columns)), rows(kPanelGroup * panel_size);
  Aligned<C> gradients(kPanelGroup * panel_size);
  constexpr int64_t kTile = kTileRows * kScratchStep;
  Aligned<C> weights(kPanelGroup * kTile), known(kPanelGroup * kTile);
  RowPanel<C> panel[kPanelGroup];

  for (int64_t p = begin; p < end; p += kPanelGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kPanelGroup, end - p));
    gradients.clear();
    for (int q = 0; q < group; ++q) {
      panel[q].left = left.data();
      load_panel(task.x, g, (p + q) * kTileRows, /*paired=*/false, rows.data() + q * panel_size,
                 panel[q]);
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r;
        if (task.first_chunk) {
          task.weight_sum[i] = 0;
        } else {
          std::copy_n(task.gradient + i * columns, columns,
                      gradients.data() + q * panel_size + r * g.padded);
        }
      }
    }
    for (int64_t j = 0; j < task.chunk.count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, task.chunk.count - j));
      const int64_t first = task.chunk.first + j;
      const int64_t row = p * kTileRows;
      const int count = static_cast<int>(std::min<int64_t>(group * kTileRows, task.x.rows - row));
      load_tile(task.weights, task, row, count, first, n, weights.data());
      load_tile(task.known, task, row, count, first, n, known.data());
      for (int r = count; r < group * kTileRows; ++r) {
        std::fill_n(weights.data() + r * kScratchStep, n, C(0));
      }
      for (int q = 0; q < group; ++q) {
        for (int r = 0; r < panel[q].count; ++r) {
          const int64_t i = panel[q].first + r;
          C* const row = weights.data() + q * kTile + r * kScratchStep;
          const C* const d2 = known.data() + q * kTile + r * kScratchStep;
          const C norm = panel[q].norms[r];
          Flag<C> any = 0;
          for (int c = 0; c < n; ++c) {
            const C size = norm + task.chunk.norms[j + c];
            const bool fine = (d2[c] >= threshold * size) & (size >= SafeRange<C>::kLow) &
                              (size <= SafeRange<C>::kHigh);
            any |= fine ? 0 : 1;
          }
          C* const gradient = gradients.data() + q * panel_size + r * g.padded;
          for (int c = 0; any && c < n; ++c) {
            const C size = norm + task.chunk.norms[j + c], weight = row[c];
            if (d2[c] >= threshold * size && size >= SafeRange<C>::kLow &&
                size <= SafeRange<C>::kHigh) {
              continue;
            }
            row[c] = 0;
            if (panel[q].finite[r] && task.chunk.finite[j + c]) {
              add_difference(weight, panel[q].rows + r * g.padded,
                             task.chunk.rows + (j + c) * g.padded, g.padded, gradient);
              continue;
            }
            for (int64_t d = 0; d < columns; ++d) {
              gradient[d] += static_cast<C>(
                  weight * (element(task.ref, first + c, d) - element(task.x, i, d)));
            }
          }
          task.weight_sum[i] += sum_weights(row, n);
        }
        add_weighted_rows(weights.data() + q * kTile, task.chunk.rows + j * g.padded, n, g.padded,
                          gradients.data() + q * panel_size);
      }
    }
    for (int q = 0; q < group; ++q) {
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r;
        const C* const x = panel[q].rows + r * g.padded;
        const C* const sum = gradients.data() + q * panel_size + r * g.padded;
        C* const out = task.gradient + i * columns;
        const double weight = task.weight_sum[i];
        for (int64_t d = 0; d < columns; ++d) {
          out[d] = task.last_chunk ? static_cast<C>(2 * (weight * x[d] - sum[d])) : sum[d];
        }
      }
    }
  }
}
