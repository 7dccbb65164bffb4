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
inline void load_weights(const DistanceTask<C>& task, int64_t i, int64_t first, int n, C* to) {
  const int64_t at = i * task.weight_row_step + first * task.weight_column_step;
  for (int c = 0; c < n; ++c) {
    const int64_t from = at + c * task.weight_column_step;
    switch (task.x.dtype) {
      case DType::kFloat16:
        to[c] = math::widen(static_cast<const math::Half*>(task.weights)[from]);
        break;
      case DType::kBFloat16:
        to[c] = math::widen(static_cast<const math::BFloat16*>(task.weights)[from]);
        break;
      case DType::kFloat32: to[c] = static_cast<const float*>(task.weights)[from]; break;
      case DType::kFloat64:
        to[c] = static_cast<C>(static_cast<const double*>(task.weights)[from]);
        break;
    }
  }
}

template <class C>
void distances(const DistanceTask<C>& task, int64_t begin, int64_t end) {
  const int64_t columns = task.x.columns, others = task.ref.rows;
  const TileGeometry g = tile_geometry<C>(columns);
  const C threshold =
      static_cast<C>(math::tile_rescue_threshold(columns, std::numeric_limits<C>::epsilon() / 2));
  const int64_t panel_size = kTileRows * g.padded;
  const bool backward = task.gradient != nullptr;
  Aligned<C> left(kPanelGroup * left_size<C>(columns)), rows(kPanelGroup * panel_size);
  Aligned<C> gradients(backward ? kPanelGroup * panel_size : 0);
  Aligned<C> sums(kTileRows * kScratchStep);
  Flag<C> flag[kMaxBlock];
  RowPanel<C> panel[kPanelGroup];

  for (int64_t p = begin; p < end; p += kPanelGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kPanelGroup, end - p));
    gradients.clear();
    for (int q = 0; q < group; ++q) {
      panel[q].left = left.data() + q * left_size<C>(columns);
      panel[q].rows = rows.data() + q * panel_size;
      load_panel(task.x, g, (p + q) * kTileRows, panel[q]);
      for (int r = 0; backward && r < panel[q].count; ++r) {
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
      for (int q = 0; q < group; ++q) {
        tile_sums<C, true>(panel[q], task.chunk.panels + j * columns, columns,
                           round_up(n, kTileColumns<C>), sums.data());
        for (int r = 0; r < panel[q].count; ++r) {
          const int64_t i = panel[q].first + r, first = task.chunk.first + j;
          C* row = sums.data() + r * kScratchStep;
          const bool special = finish_distances(task.x, task.ref, panel[q], r, task.chunk, j, n, g,
                                                threshold, row, flag);
          if (task.distances) {
            if (sizeof(C) == 8 || task.x.dtype == DType::kFloat32) {
              std::copy_n(row, n, static_cast<C*>(task.distances) + i * others + first);
            } else {
              for (int c = 0; c < n; ++c) {
                store_as(task.x.dtype, task.distances, i * others + first + c, row[c]);
              }
            }
          }
          if (!backward) continue;
          C* gradient = gradients.data() + q * panel_size + r * g.padded;
          const C* own = panel[q].rows + r * g.padded;
          load_weights(task, i, first, n, row);
          for (int c = 0; special && c < n; ++c) {
            if (!flag[c]) continue;
            const C weight = row[c];
            row[c] = 0;
            if (flag[c] == 1) {
              add_difference(weight, own, task.chunk.rows + (j + c) * g.padded, g.padded, gradient);
              continue;
            }
            for (int64_t d = 0; d < columns; ++d) {
              gradient[d] += static_cast<C>(
                  weight * (element(task.ref, first + c, d) - element(task.x, i, d)));
            }
          }
          task.weight_sum[i] += sum_row(row, n);
        }
        if (!backward) continue;
        for (int r = panel[q].count; r < kTileRows; ++r) {
          std::fill_n(sums.data() + r * kScratchStep, n, C(0));
        }
        add_weighted_rows(sums.data(), task.chunk.rows + j * g.padded, n, g.padded,
                          gradients.data() + q * panel_size);
      }
    }
    for (int q = 0; backward && q < group; ++q) {
      for (int r = 0; r < panel[q].count; ++r) {
        const int64_t i = panel[q].first + r;
        const C* x = panel[q].rows + r * g.padded;
        const C* sum = gradients.data() + q * panel_size + r * g.padded;
        C* out = task.gradient + i * columns;
        const double weight = task.weight_sum[i];
        for (int64_t d = 0; d < columns; ++d) {
          out[d] = task.last_chunk ? static_cast<C>(2 * (weight * x[d] - sum[d])) : sum[d];
        }
      }
    }
  }
}
