// Distances of all pairs as a tensor: squared_cdist. Its gradient is in meetings.inl.

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
  each_flagged<C>(flag, n, [&](int c) {
    const bool finite = panel.finite[r] && chunk.finite[j + c];
    if (finite &&
        rescue(own, chunk.rows + (j + c) * g.padded, g.padded, sums + c) == Rescue::kClose) {
      return;
    }
    flag[c] = 2;
    sums[c] = static_cast<C>(exact_sum(x, panel.first + r, ref, chunk.first + j + c, true));
  });
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
