// Screening by the tile engine: the expanded form, in float.
//
// With ε the error bound of math/tiles.h, |q|² + |g|² − 2·product is within ε·(|q|² + |g|²) of the
// distance. So the frame of a query is (1 − ε)·|q|², a pair's lower bound (1 − ε)·|g|² − 2·product,
// and its upper one 2ε·(|q|² + |g|²) more. A norm of NaN lets a row pass; rows whose norm is
// beyond kMaxNorm have one, so that nothing overflows.
//
// FLOPs 2·Q·N·D; the rows are packed a chunk at a time, and the products of 12 queries with a block
// of rows stay in the first-level cache.

constexpr float kMaxNorm = 1e30f;

SIAM_INLINE double screen_error(int64_t columns) {
  return math::tile_error(columns, std::numeric_limits<float>::epsilon() / 2) + 8 * 0x1p-24;
}

void begin_tiles(const SearchTask<float>& task) {
  const double keep_share = 1 - screen_error(task.rows.columns);
  for (int64_t q = 0; q < task.count; ++q) {
    const double norm = squared_norm(task.queries + q * task.padded, task.rows.columns);
    task.wild[q] = !(norm <= kMaxNorm) || (task.cosine && task.zeros[q]);
    task.frame[q] = task.wild[q] ? 0 : keep_share * norm;
    set_base(task, q);
  }
}

// The columns of one row of products whose lower bound is not above `base`: their numbers.
SIAM_INLINE int passing(const float* products, const float* norms, float share, float base, int n,
                        int32_t* list) {
  constexpr int kWidth = Vec<float>::kWidth;
  int count = 0;
  const Vec<float> scale(share), limit(base), two(-2.0f);
  for (int c = 0; c < n; c += kWidth) {
    const Vec<float> value = multiply_add(two, load(products + c), scale * load(norms + c));
#if defined(SIAM_LEVEL_AVX512)
    uint32_t passed = _mm512_cmp_ps_mask((__m512)value.v, (__m512)limit.v, _CMP_NGT_UQ);
    if (passed == 0) continue;
    for (; passed; passed &= passed - 1) list[count++] = c + __builtin_ctz(passed);
#else
    const auto passed = ~(value.v > limit.v);
    if (!any_lane(Vec<float>((Vec<float>::Native)passed))) continue;
    for (int l = 0; l < kWidth; ++l) {
      if (passed[l]) list[count++] = c + l;
    }
#endif
  }
  while (count > 0 && list[count - 1] >= n) --count;
  return count;
}

// The queries of the task against all rows of a chunk of its matrix.
void search_tiles(const SearchTask<float>& task, const Packed<float>& chunk) {
  const int64_t columns = task.rows.columns;
  const TileGeometry g = tile_geometry<float>(columns);
  const double error = screen_error(columns);
  const float share = static_cast<float>(1 - error);
  const Matrix queries{task.queries, task.count, columns, task.padded, DType::kFloat32};
  const int64_t panels = (task.count + kTileRows - 1) / kTileRows;
  // Panels that stay in the second-level cache beside a block of rows.
  const int64_t left_bytes = left_size<float>(columns) * static_cast<int64_t>(sizeof(float));
  const int64_t group =
      std::clamp<int64_t>((int64_t{256} << 10) / std::max<int64_t>(left_bytes, 1), 1, panels);
  Aligned<float> left(group * left_size<float>(columns)), rows(kTileRows * g.padded);
  Aligned<float> sums(kTileRows * kScratchStep);
  Aligned<RowPanel<float>> loaded(group);
  int32_t list[kMaxBlock];
  for (int64_t p = 0; p < panels; p += group) {
    const int64_t here = std::min(group, panels - p);
    for (int64_t q = 0; q < here; ++q) {
      loaded.data()[q].left = left.data() + q * left_size<float>(columns);
      load_panel(queries, g, (p + q) * kTileRows, false, rows.data(), loaded.data()[q]);
    }
    for (int64_t j = 0; j < chunk.count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, chunk.count - j));
      for (int64_t each = 0; each < here; ++each) {
        const RowPanel<float>& panel = loaded.data()[each];
        tile_sums<float, true>(panel, chunk, j, columns, round_up(n, kTileColumns<float>),
                               sums.data());
        for (int r = 0; r < panel.count; ++r) {
          const int64_t q = panel.first + r;
          const float* const products = sums.data() + r * kScratchStep;
          const int found = passing(products, chunk.norms + j, share, task.base[q], n, list);
          for (int at = 0; at < found; ++at) {
            const int c = list[at];
            const double norm = chunk.norms[j + c];
            const double lower = (1 - error) * norm - 2 * static_cast<double>(products[c]);
            const double wide = 2 * error * (norm + task.frame[q] / (1 - error));
            add_candidate(task, q, static_cast<float>(lower), static_cast<float>(lower + wide),
                          chunk.first + j + c);
          }
        }
      }
    }
  }
}
