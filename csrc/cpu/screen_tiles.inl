// Screening by the tile engine: the expanded form, in float.
//
// With ε the error bound of math/tiles.h, |q|² + |g|² − 2·product is within ε·(|q|² + |g|²) of the
// distance. So the frame of a query is (1 − ε)·|q|², a pair's lower bound (1 − ε)·|g|² − 2·product,
// and its upper one 2ε·(|q|² + |g|²) more. A norm of NaN lets a row pass; rows whose norm is
// beyond kMaxNorm have one, so that nothing overflows.
//
// FLOPs 2·Q·N·D; the rows are packed a chunk at a time, for all queries. With AVX-512 a product is
// compared in the register that it was summed in; else the products of a panel of queries with a
// block of rows stay in the first-level cache.

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
  // Nothing passes for rows of a panel that don't exist.
  std::fill(task.base + task.count, task.base + round_up(task.count, kTileRows),
            -std::numeric_limits<float>::infinity());
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

// 2ε·(|q|² + |g|²), a little more for roundings: own + factor·norm.
struct Width {
  float own, factor;
};
SIAM_INLINE Width width_of(const SearchTask<float>& task, int64_t q, double error) {
  return {static_cast<float>(1.01 * 2 * error * task.frame[q]), static_cast<float>(2.06 * error)};
}

#if defined(SIAM_LEVEL_AVX512)
constexpr int kScreenColumns = kTileColumns<float>;

// Lower bounds of a panel of queries with a register tile of rows, whose elements and norms are
// given: lower[r·kScreenColumns + c], and a bit in passed[r] for each that is not above the
// query's base. Returns a bit for each query with any. The bounds are made and compared in the
// registers that hold the products; what is stored is for those that pass.
__attribute__((noinline)) inline uint32_t bound_tile(const RowPanel<float>& panel,
                                                     const float* right, const float* norms,
                                                     const float* base, int64_t columns,
                                                     float* lower, uint32_t* passed) {
  constexpr int kWide = kScreenColumns, kWidth = Vec<float>::kWidth;
  Vec<float> sum[kTileRows][2];
  const float* left = panel.left;
  int64_t k = 0;
  for (; k + kDepth < columns; k += kDepth, left += kTileRows * kRowStep, right += kDepth * kWide) {
    multiply<float, kRowStep>(left, 0, right, kWide, kDepth, nullptr, sum);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        float* const to = lower + r * kWide + v * kWidth;
        store(to, k == 0 ? sum[r][v] : load(to) + sum[r][v]);
      }
    }
  }
  multiply<float, kRowStep>(left, 0, right, kWide, columns - k, nullptr, sum);
  if (k > 0) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) sum[r][v] = load(lower + r * kWide + v * kWidth) + sum[r][v];
    }
  }
  const Vec<float> two(-2.0f), norm[2] = {load(norms), load(norms + kWidth)};
  uint32_t any = 0;
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    const __m512 limit = _mm512_set1_ps(base[r]);
    __mmask16 mask[2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const Vec<float> value = multiply_add(two, sum[r][v], norm[v]);
      mask[v] = _mm512_cmp_ps_mask((__m512)value.v, limit, _CMP_NGT_UQ);
      store(lower + r * kWide + v * kWidth, value);
    }
    const uint32_t both = _mm512_kunpackw(mask[1], mask[0]);
    passed[r] = both;
    any |= (both != 0 ? 1u : 0u) << r;
  }
  return any;
}

// Adds those rows of a tile whose bit is set to the candidates of query q.
SIAM_INLINE void add_passed(const SearchTask<float>& task, int64_t q, uint32_t bits,
                            const float* lower, const float* norms, double error, int64_t row) {
  if (task.candidates.count[q] + kScreenColumns > task.candidates.capacity) {
    thin_out(task, q, kScreenColumns);
  }
  const Width width = width_of(task, q, error);
  if ((bits & (bits - 1)) == 0) {  // nearly always, once there are k
    const int at = __builtin_ctz(bits);
    add_candidate(task, q, lower[at], lower[at] + (width.own + width.factor * norms[at]), row + at);
    return;
  }
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const __m512 value = _mm512_loadu_ps(lower + 16 * v);
    const __m512 wide = _mm512_fmadd_ps(_mm512_set1_ps(width.factor),
                                        _mm512_loadu_ps(norms + 16 * v), _mm512_set1_ps(width.own));
    add_vector(task, q, static_cast<__mmask16>(bits >> (16 * v)), value, value, wide, row + 16 * v);
  }
}

// A panel of queries against n rows of a chunk from row j on, a multiple of panel_columns.
SIAM_INLINE void screen_panel(const SearchTask<float>& task, const RowPanel<float>& panel,
                              const Packed<float>& chunk, int64_t j, int n, double error,
                              float* scratch) {
  const int64_t columns = task.rows.columns;
  uint32_t passed[kTileRows];
  for (int c = 0; c < n; c += kScreenColumns) {
    uint32_t any = bound_tile(panel, chunk.panels + (j + c) * columns, chunk.norms + j + c,
                              task.base + panel.first, columns, scratch, passed);
    const uint32_t here = n - c < kScreenColumns ? (1u << (n - c)) - 1 : ~0u;
    for (; any != 0; any &= any - 1) {
      const int r = __builtin_ctz(any);
      const uint32_t bits = passed[r] & here;
      if (r >= panel.count || bits == 0) continue;
      add_passed(task, panel.first + r, bits, scratch + r * kScreenColumns, chunk.norms + j + c,
                 error, chunk.first + j + c);
    }
  }
}
#else
// The same. Vectors are looked at in groups, since few hold a row that passes.
SIAM_INLINE void screen_panel(const SearchTask<float>& task, const RowPanel<float>& panel,
                              const Packed<float>& chunk, int64_t j, int n, double error,
                              float* scratch) {
  constexpr int kWidth = Vec<float>::kWidth, kGroup = kTileColumns<float>;
  tile_sums<float, true>(panel, chunk, j, task.rows.columns, round_up(n, kGroup), scratch);
  const float* const norms = chunk.norms + j;
  const Vec<float> two(-2.0f);
  for (int r = 0; r < panel.count; ++r) {
    const int64_t q = panel.first + r;
    const float* const products = scratch + r * kScratchStep;
    const Width width = width_of(task, q, error);
    for (int c = 0; c < n; c += kGroup) {
      const Vec<float> limit(task.base[q]);
      Vec<float> value[2];
      bool any = false;
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const int at = c + v * kWidth;
        value[v] = multiply_add(two, load(products + at), load(norms + at));
        any |= any_lane(Vec<float>((Vec<float>::Native) ~(value[v].v > limit.v)));
      }
      if (!any) continue;
      for (int at = c; at < std::min(n, c + kGroup); ++at) {
        const float lower = value[(at - c) / kWidth].v[(at - c) % kWidth];
        if (lower > limit.v[0]) continue;
        add_candidate(task, q, lower, lower + (width.own + width.factor * norms[at]),
                      chunk.first + j + at);
      }
    }
  }
}
#endif

// The queries of the task against all rows of a chunk of its matrix.
void search_tiles(const SearchTask<float>& task, const Packed<float>& chunk) {
  const int64_t columns = task.rows.columns, left_step = left_size<float>(columns);
  const TileGeometry g = tile_geometry<float>(columns);
  const double error = screen_error(columns);
  const int64_t panels = (task.count + kTileRows - 1) / kTileRows;
  // Panels that stay in the second-level cache beside a block of rows.
  const int64_t left_bytes = left_step * static_cast<int64_t>(sizeof(float));
  const int64_t group =
      std::clamp<int64_t>((int64_t{256} << 10) / std::max<int64_t>(left_bytes, 1), 1, panels);
  Aligned<float> left(group * left_step), scratch(kTileRows * kScratchStep);
  for (int64_t p = 0; p < panels; p += group) {
    const int64_t here = std::min(group, panels - p);
    const auto panel_of = [&](int64_t each) {
      RowPanel<float> panel{};
      panel.first = (p + each) * kTileRows;
      panel.count = static_cast<int>(std::min<int64_t>(kTileRows, task.count - panel.first));
      panel.left = left.data() + each * left_step;
      return panel;
    };
    left.clear();
    for (int64_t each = 0; each < here; ++each) {
      const RowPanel<float> panel = panel_of(each);
      for (int r = 0; r < panel.count; ++r) {
        set_left(task.queries + (panel.first + r) * task.padded, columns, r, panel);
      }
    }
    for (int64_t j = 0; j < chunk.count; j += g.block) {
      const int n = static_cast<int>(std::min<int64_t>(g.block, chunk.count - j));
      for (int64_t each = 0; each < here; ++each) {
        screen_panel(task, panel_of(each), chunk, j, n, error, scratch.data());
      }
    }
  }
}
