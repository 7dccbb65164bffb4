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

// What a search asks of the norms of a chunk in place of |g|².
void prepare_norms(const SearchTask<float>& task, const Packed<float>& chunk) {
  const float share = static_cast<float>(1 - screen_error(task.rows.columns));
  const int64_t padded = round_up(chunk.count, kTileColumns<float>);
  for (int64_t at = 0; at < padded; ++at) {
    const float norm = chunk.norms[at];
    const bool wild = norm > kMaxNorm || (task.cosine && norm == 0);
    chunk.norms[at] = wild ? std::numeric_limits<float>::quiet_NaN() : share * norm;
  }
}

// Adds the candidates among the next rows, at most a group of vectors, to those of query q. There
// are n rows, of which `row` is the first; those behind n fill up a vector.
constexpr int kPassingGroup = 4;
template <bool kWhole>
SIAM_INLINE void add_group(const SearchTask<float>& task, int64_t q, const float* products,
                           const float* norms, float own, float factor, int n, int64_t row) {
  constexpr int kWidth = Vec<float>::kWidth, kGroup = kPassingGroup;
  const int vectors = kWhole ? kGroup : (n + kWidth - 1) / kWidth;
  const Vec<float> two(-2.0f), limit(task.base[q]);
  Vec<float> value[kGroup];
#if defined(SIAM_LEVEL_AVX512)
  uint64_t passed = 0;
#pragma GCC unroll 4
  for (int v = 0; v < kGroup; ++v) {
    if (!kWhole && v >= vectors) break;
    value[v] = multiply_add(two, load(products + v * kWidth), load(norms + v * kWidth));
    const uint64_t mask = _mm512_cmp_ps_mask((__m512)value[v].v, (__m512)limit.v, _CMP_NGT_UQ);
    passed |= mask << (16 * v);
  }
  if (!kWhole) passed &= (uint64_t{1} << n) - 1;
  if (__builtin_expect(passed == 0, 1)) return;
  if (task.candidates.count[q] + kGroup * kWidth > task.candidates.capacity) {
    thin_out(task, q, kGroup * kWidth);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kGroup; ++v) {
    if (!kWhole && v >= vectors) break;
    const __m512 wide = _mm512_fmadd_ps(_mm512_set1_ps(factor), _mm512_loadu_ps(norms + v * kWidth),
                                        _mm512_set1_ps(own));
    add_vector(task, q, static_cast<__mmask16>(passed >> (16 * v)), (__m512)value[v].v,
               (__m512)value[v].v, wide, row + v * kWidth);
  }
#else
  bool any = false;
#pragma GCC unroll 4
  for (int v = 0; v < kGroup; ++v) {
    if (!kWhole && v >= vectors) break;
    value[v] = multiply_add(two, load(products + v * kWidth), load(norms + v * kWidth));
    any |= any_lane(Vec<float>((Vec<float>::Native) ~(value[v].v > limit.v)));
  }
  if (!any) return;
  for (int v = 0; v < vectors; ++v) {
    for (int l = 0; l < kWidth && v * kWidth + l < n; ++l) {
      const float lower = value[v].v[l];
      if (lower > limit.v[l]) continue;
      const int at = v * kWidth + l;
      add_candidate(task, q, lower, lower + (own + factor * norms[at]), row + at);
    }
  }
#endif
}

// The same for n rows.
SIAM_INLINE void add_passing(const SearchTask<float>& task, int64_t q, const float* products,
                             const float* norms, float error, int n, int64_t row) {
  constexpr int kRows = kPassingGroup * Vec<float>::kWidth;
  // 2ε·(|q|² + |g|²), a little more for roundings.
  const float own = static_cast<float>(1.01 * 2 * error * task.frame[q]);
  const float factor = 1.03f * 2 * error;
  int c = 0;
  for (; c + kRows <= n; c += kRows) {
    add_group<true>(task, q, products + c, norms + c, own, factor, kRows, row + c);
  }
  if (c < n) add_group<false>(task, q, products + c, norms + c, own, factor, n - c, row + c);
}

// The queries of the task against all rows of a chunk of its matrix.
void search_tiles(const SearchTask<float>& task, const Packed<float>& chunk) {
  const int64_t columns = task.rows.columns;
  const TileGeometry g = tile_geometry<float>(columns);
  const double error = screen_error(columns);
  const Matrix queries{task.queries, task.count, columns, task.padded, DType::kFloat32};
  const int64_t panels = (task.count + kTileRows - 1) / kTileRows;
  // Panels that stay in the second-level cache beside a block of rows.
  const int64_t left_bytes = left_size<float>(columns) * static_cast<int64_t>(sizeof(float));
  const int64_t group =
      std::clamp<int64_t>((int64_t{256} << 10) / std::max<int64_t>(left_bytes, 1), 1, panels);
  Aligned<float> left(group * left_size<float>(columns)), rows(kTileRows * g.padded);
  Aligned<float> sums(kTileRows * kScratchStep);
  Aligned<RowPanel<float>> loaded(group);
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
          add_passing(task, q, sums.data() + r * kScratchStep, chunk.norms + j,
                      static_cast<float>(error), n, chunk.first + j);
        }
      }
    }
  }
}
