// The tile engine: distances of a panel of rows from a block of columns, in the first-level cache.
//
// One register-blocked kernel serves both products of a batch loss. `multiply` adds a panel of
// kRows rows times depth, whose elements are broadcast, to a panel of depth times two vectors:
//   distances: A = rows of x [kRows, 128 at a time], B = packed columns [D, 2 vectors];
//   gradients: A = weights of the pairs [kRows, block], B = the rows themselves [block, D].
// A has a constant row step, so that every broadcast is one load with an immediate offset.
// Two vectors by kRows accumulators and two vectors of B fill the register file.
//
// Cost of a panel of kRows rows against n columns: 2·kRows·n·D FLOPs for the distances and as many
// for the gradient. A block of columns (two copies, packed and as rows) stays in the second-level
// cache while the panels that a thread owns pass over it.

#if defined(SIAM_LEVEL_AVX512)
constexpr int kTileRows = 12;
#elif defined(SIAM_LEVEL_AVX2)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kDepth = math::kTileDepth;
// Row steps that keep the rows of an operand in different sets of the cache.
constexpr int kRowStep = kDepth + 16;
constexpr int kMaxBlock = 256;
constexpr int kScratchStep = kMaxBlock + 16;
// Rows of a block that meets others, the least and the most: whole panels at every level.
constexpr int kMinMeeting = 96, kMaxMeeting = 192;
// Panels of rows that pass over a block of columns while it is in the cache.
constexpr int kPanelGroup = 8;

template <class C>
constexpr int kTileColumns = 2 * Vec<C>::kWidth;

SIAM_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class C>
TileGeometry tile_geometry(int64_t columns) {
  constexpr int64_t kCacheBytes = int64_t{512} << 10;  // half of a second-level cache
  TileGeometry g;
  g.panel_rows = kTileRows;
  g.panel_columns = kTileColumns<C>;
  g.padded = round_up(columns, std::max<int64_t>(kTileColumns<C>, 16));
  const int64_t row_bytes = static_cast<int64_t>(sizeof(C)) * std::max<int64_t>(g.padded, 1);
  g.block = std::clamp<int64_t>(kCacheBytes / (2 * row_bytes) / 32 * 32, 64, kMaxBlock);
  g.meeting = std::clamp<int64_t>(kCacheBytes / row_bytes / kMinMeeting * kMinMeeting, kMinMeeting,
                                  kMaxMeeting);
  g.scratch_step = kScratchStep;
  return g;
}

// Memory aligned to a cache line, zeroed.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count)
      : size_(count),
        data_(static_cast<T*>(
            ::operator new(std::max<int64_t>(count, 1) * sizeof(T), std::align_val_t{64}))) {
    clear();
  }
  ~Aligned() { ::operator delete(data_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* data() const { return data_; }
  int64_t size() const { return size_; }
  void clear() { std::memset(static_cast<void*>(data_), 0, size_ * sizeof(T)); }

 private:
  int64_t size_;
  T* data_;
};

// --- packing -------------------------------------------------------------------------------------

template <class C, class T>
SIAM_INLINE void widen_row(const T* from, int64_t columns, C* to) {
  for (int64_t k = 0; k < columns; ++k) to[k] = static_cast<C>(math::widen(from[k]));
}

template <class C>
inline void widen_row(const Matrix& m, int64_t row, C* to) {
  const int64_t offset = row * m.step;
  switch (m.dtype) {
    case DType::kFloat16:
      return widen_row(static_cast<const math::Half*>(m.data) + offset, m.columns, to);
    case DType::kBFloat16:
      return widen_row(static_cast<const math::BFloat16*>(m.data) + offset, m.columns, to);
    case DType::kFloat32:
      return widen_row(static_cast<const float*>(m.data) + offset, m.columns, to);
    case DType::kFloat64:
      return widen_row(static_cast<const double*>(m.data) + offset, m.columns, to);
  }
}

template <class C>
SIAM_INLINE double squared_norm(const C* x, int64_t n) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) {
      const double v = x[k + l];
      lane[l] += v * v;
    }
  }
  for (; k < n; ++k) lane[k % kLanes] += static_cast<double>(x[k]) * static_cast<double>(x[k]);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

template <class C>
SIAM_INLINE bool all_finite(const C* x, int64_t n) {
  C sum = 0;  // stays 0 unless an element is inf or NaN
  for (int64_t k = 0; k < n; ++k) sum += x[k] - x[k];
  return sum == 0;
}

// The same, given Σx²: where that is finite nobody needs to look, and looking is one long chain of
// additions. Squares of float always fit into a double, those of double may overflow.
template <class C>
SIAM_INLINE bool all_finite(const C* x, int64_t n, double squares) {
  return squares - squares == 0 || (sizeof(C) == 8 && all_finite(x, n));
}

// Two elements that were widened from bfloat16, as they were. Padding makes up for an odd D.
template <class C>
SIAM_INLINE uint32_t bfloat16_pair(const C* x) {
  const uint32_t low = math::bit_cast<uint32_t>(static_cast<float>(x[0])) >> 16;
  const uint32_t high = math::bit_cast<uint32_t>(static_cast<float>(x[1])) & 0xffff0000u;
  return low | high;
}

// Panels [begin, end) of panel_columns rows each, counted from the chunk's first row.
template <class C>
void pack_columns(const Matrix& m, const TileGeometry& g, const Packed<C>& out, int64_t begin,
                  int64_t end) {
  constexpr int kWide = kTileColumns<C>;
  for (int64_t p = begin; p < end; ++p) {
    C* panel = out.panels + p * m.columns * kWide;
    for (int c = 0; c < kWide; ++c) {
      const int64_t at = p * kWide + c;
      C* const copy = out.copy ? out.copy + at * g.padded : nullptr;
      const C* const row = out.rows + at * g.padded;
      if (copy) std::memset(static_cast<void*>(copy), 0, sizeof(C) * g.padded);
      out.norms[at] = 0;
      out.finite[at] = 1;
      if (at < out.count) {
        if (copy) widen_row(m, out.first + at, copy);
        const double squares = squared_norm(row, m.columns);
        out.norms[at] = static_cast<C>(squares);
        if (!all_finite(row, m.columns, squares)) {
          // The norm sends its pairs to the slow path; its zeros keep it out of every product. Rows
          // without a copy are packed again with one.
          out.norms[at] = std::numeric_limits<C>::quiet_NaN();
          out.finite[at] = 0;
          if (copy) std::memset(static_cast<void*>(copy), 0, sizeof(C) * g.padded);
        }
      }
    }
    const C* rows = out.rows + p * kWide * g.padded;
    const int here = static_cast<int>(std::min<int64_t>(kWide, out.count - p * kWide));
    if (out.pairs) {
      const int64_t depth = (m.columns + 1) / 2;
      for (int64_t k = 0; k < depth; ++k) {
        for (int c = 0; c < kWide; ++c) {
          out.pairs[(p * depth + k) * kWide + c] = bfloat16_pair(rows + c * g.padded + 2 * k);
        }
      }
    }
    constexpr int kWidth = Vec<C>::kWidth;
    const int64_t vectors = here == kWide ? m.columns / kWidth * kWidth : 0;
    for (int64_t k = 0; k < vectors; k += kWidth) {
      for (int c = 0; c < kWide; c += kWidth) {
        transpose(rows + c * g.padded + k, g.padded, panel + k * kWide + c, kWide);
      }
    }
    for (int64_t k = vectors; k < m.columns; ++k) {
      for (int c = 0; c < kWide; ++c) {
        panel[k * kWide + c] = c < here ? rows[c * g.padded + k] : C(0);
      }
    }
  }
}

// --- the register tile
// -----------------------------------------------------------------------------

// sum[r][v] = Σ_k a(r, k) · b[k·b_step + v·width] in the order of k; a(r, k) is a[r·kStep + k], or
// a[k·a_step + r] if kStep is 0. kListed: k takes the values of `list` alone.
template <class C, int kStep, bool kListed = false>
SIAM_INLINE void multiply(const C* a, int64_t a_step, const C* b, int64_t b_step, int64_t depth,
                          const int32_t* list, Vec<C> (&sum)[kTileRows][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = Vec<C>();
  for (int64_t t = 0; t < depth; ++t) {
    const int64_t k = kListed ? list[t] : t;
    const C* const right = kListed ? b + k * b_step : b;
    const C* const left = kListed && !kStep ? a + k * a_step : kStep ? a + k : a;
    const Vec<C> b0 = load(right), b1 = load(right + Vec<C>::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const Vec<C> ar(left[kStep ? r * kStep : r]);
      sum[r][0] = multiply_add(ar, b0, sum[r][0]);
      sum[r][1] = multiply_add(ar, b1, sum[r][1]);
    }
    if (!kListed) {
      b += b_step;
      a += kStep ? 0 : a_step;
    }
  }
}

// The same with |a − b| in place of a·b.
template <class C, int kStep>
SIAM_INLINE void add_magnitudes(const C* a, const C* b, int64_t b_step, int64_t depth,
                                Vec<C> (&sum)[kTileRows][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = Vec<C>();
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<C> b0 = load(b), b1 = load(b + Vec<C>::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const Vec<C> ar(a[r * kStep + k]);
      sum[r][0] = sum[r][0] + magnitude(ar - b0);
      sum[r][1] = sum[r][1] + magnitude(ar - b1);
    }
    b += b_step;
  }
}

// A panel of rows, as the left operand and as they are.
template <class C>
struct RowPanel {
  int64_t first;  // row of the matrix
  int count;      // rows that exist
  C* left;        // [⌈D/128⌉][kTileRows][kRowStep], zeros for rows that don't exist
  bool paired;    // `left` holds pairs of bfloat16 instead, 64 where there are 128 elements
  const C* rows;  // [kTileRows][padded], only the first `count` if another's
  C norms[kTileRows];
  bool finite[kTileRows];
};

template <class C>
inline int64_t left_size(int64_t columns) {
  return (columns + kDepth - 1) / kDepth * kTileRows * kRowStep;
}

// One row of the left operand.
template <class C>
SIAM_INLINE void set_left(const C* row, int64_t columns, int r, const RowPanel<C>& panel) {
  for (int64_t k = 0; k < columns; k += kDepth) {
    const int64_t n = std::min<int64_t>(kDepth, columns - k);
    C* const left = panel.left + (k / kDepth * kTileRows + r) * kRowStep;
    if (panel.paired) {
      for (int64_t e = 0; e < n; e += 2) {
        const uint32_t pair = bfloat16_pair(row + k + e);
        std::memcpy(reinterpret_cast<char*>(left) + 2 * e, &pair, sizeof(pair));
      }
    } else {
      std::memcpy(left, row + k, sizeof(C) * n);
    }
  }
}

// `rows` is where the panel's own copy goes.
template <class C>
void load_panel(const Matrix& m, const TileGeometry& g, int64_t first, bool paired, C* rows,
                RowPanel<C>& panel) {
  panel.first = first;
  panel.paired = paired;
  panel.rows = rows;
  panel.count = static_cast<int>(std::min<int64_t>(kTileRows, m.rows - first));
  std::memset(static_cast<void*>(panel.left), 0, sizeof(C) * left_size<C>(m.columns));
  for (int r = 0; r < kTileRows; ++r) {
    C* row = rows + r * g.padded;
    std::memset(static_cast<void*>(row), 0, sizeof(C) * g.padded);
    panel.norms[r] = 0;
    panel.finite[r] = true;
    if (r >= panel.count) continue;
    widen_row(m, first + r, row);
    const double squares = squared_norm(row, m.columns);
    panel.norms[r] = static_cast<C>(squares);
    if (!all_finite(row, m.columns, squares)) {
      panel.norms[r] = std::numeric_limits<C>::quiet_NaN();
      panel.finite[r] = false;
      std::memset(static_cast<void*>(row), 0, sizeof(C) * g.padded);
    }
    set_left(row, m.columns, r, panel);
  }
}

// A panel of rows that are packed as columns too: nothing is copied but the left operand.
template <class C>
void borrow_panel(const Packed<C>& chunk, int64_t columns, int64_t padded, int64_t at, bool paired,
                  RowPanel<C>& panel) {
  panel.first = chunk.first + at;
  panel.paired = paired;
  panel.rows = chunk.rows + at * padded;
  panel.count = static_cast<int>(std::min<int64_t>(kTileRows, chunk.count - at));
  for (int r = 0; r < kTileRows; ++r) {
    if (r < panel.count) {
      panel.norms[r] = chunk.norms[at + r];
      panel.finite[r] = chunk.finite[at + r] != 0;
      set_left(panel.rows + r * padded, columns, r, panel);
      continue;
    }
    for (int64_t k = 0; k < columns; k += kDepth) {
      C* const left = panel.left + (k / kDepth * kTileRows + r) * kRowStep;
      std::memset(static_cast<void*>(left), 0, sizeof(C) * kDepth);
    }
  }
}

#if defined(SIAM_LEVEL_AVX512)
// The products of tile_sums for bfloat16: VDPBF16PS multiplies exactly and adds two products a
// lane, one after the other, rounding each to nearest and flushing subnormals, which the range of
// norms that is safe leaves far below the error bound.
__attribute__((noinline, target("avx512bf16"))) inline void tile_products(
    const RowPanel<float>& panel, const uint32_t* pairs, int64_t columns, int64_t n, float* sums) {
  constexpr int kWide = kTileColumns<float>, kHalfDepth = kDepth / 2;
  const int64_t depth = (columns + 1) / 2;
  for (int64_t c = 0; c < n; c += kWide) {
    for (int64_t k = 0; k < depth; k += kHalfDepth) {
      const int64_t end = std::min<int64_t>(kHalfDepth, depth - k);
      const float* const left = panel.left + k / kHalfDepth * kTileRows * kRowStep;
      const uint32_t* b = pairs + c * depth + k * kWide;
      __m512 sum[kTileRows][2];
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
      for (int64_t e = 0; e < end; ++e, b += kWide) {
        const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b);
        const __m512bh b1 = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
          int pair;
          std::memcpy(&pair, left + r * kRowStep + e, sizeof(pair));
          const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a, b0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a, b1);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          float* const to = sums + r * kScratchStep + c + v * 16;
          _mm512_storeu_ps(to, k == 0 ? sum[r][v] : _mm512_add_ps(_mm512_loadu_ps(to), sum[r][v]));
        }
      }
    }
  }
}
#endif

// sums[r·kScratchStep + c], c in [0, n): x_r·y_c (kProducts) or Σ|x_r − y_c|, n rounded up to
// whole register tiles; y_0 is row j of the chunk, a multiple of panel_columns.
template <class C, bool kProducts>
__attribute__((noinline)) void tile_sums(const RowPanel<C>& panel, const Packed<C>& chunk,
                                         int64_t j, int64_t columns, int64_t n, C* sums) {
  constexpr int kWide = kTileColumns<C>, kWidth = Vec<C>::kWidth;
#if defined(SIAM_LEVEL_AVX512)
  if constexpr (kProducts && std::is_same<C, float>::value) {
    if (panel.paired && columns > 0) {
      return tile_products(panel, chunk.pairs + j * ((columns + 1) / 2), columns, n, sums);
    }
  }
#endif
  const C* const panels = chunk.panels + j * columns;
  if (columns == 0) {
    for (int r = 0; r < kTileRows; ++r) std::fill_n(sums + r * kScratchStep, n, C(0));
    return;
  }
  for (int64_t c = 0; c < n; c += kWide) {
    for (int64_t k = 0; k < columns; k += kDepth) {
      const int64_t depth = std::min<int64_t>(kDepth, columns - k);
      const C* left = panel.left + k / kDepth * kTileRows * kRowStep;
      Vec<C> sum[kTileRows][2];
      if (kProducts) {
        multiply<C, kRowStep>(left, 0, panels + c * columns + k * kWide, kWide, depth, nullptr,
                              sum);
      } else {
        add_magnitudes<C, kRowStep>(left, panels + c * columns + k * kWide, kWide, depth, sum);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          C* to = sums + r * kScratchStep + c + v * kWidth;
          store(to, k == 0 ? sum[r][v] : load(to) + sum[r][v]);
        }
      }
    }
  }
}

// Columns c of [0, n) with a weight that is not 0, in order: how many. -1 without a list if those
// at the front have one each: then it is not worth looking. Weights as in add_weighted_rows.
template <class C, bool kTransposed>
inline int64_t list_weighted(const C* weights, int64_t step, int64_t n, int32_t* list) {
  constexpr int kWidth = Vec<C>::kWidth, kFront = kTransposed ? 4 : 16;
  int64_t count = 0;
  for (int64_t c = 0; c < n; c += kTransposed ? 1 : kWidth) {
    if (c >= kFront && count == c) return -1;
    Vec<C> any;
    if (kTransposed) {
      constexpr int kVectors = kTileRows / kWidth, kRest = kTileRows % kWidth;
      const C* const row = weights + c * step;
      for (int v = 0; v < kVectors; ++v) any = any + magnitude(load(row + v * kWidth));
      if (kRest) any = any + magnitude(load_first(row + kVectors * kWidth, kRest));
      list[count] = static_cast<int32_t>(c);
      count += any_lane(any);
      continue;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) any = any + magnitude(load(weights + r * step + c));
    if (!any_lane(any)) continue;
    C largest[kWidth];
    store(largest, any);
    const int here = static_cast<int>(std::min<int64_t>(kWidth, n - c));
    for (int l = 0; l < here; ++l) {
      list[count] = static_cast<int32_t>(c + l);
      count += largest[l] != 0;
    }
  }
  return count;
}

// gradient[r·padded + d] += Σ_c weights[r·kScratchStep + c] · rows[c·padded + d], c in [0, n).
// kTransposed: of weights[c·step + r]. Columns whose weights are all 0 are passed over, which
// changes no bit: a hinge has many.
template <class C, bool kTransposed = false>
__attribute__((noinline)) void add_weighted_rows(const C* weights, const C* rows, int64_t n,
                                                 int64_t padded, C* gradient,
                                                 int64_t step = kScratchStep) {
  constexpr int kWide = kTileColumns<C>, kWidth = Vec<C>::kWidth;
  constexpr int kStep = kTransposed ? 0 : kScratchStep, kMaxListed = 512;
  int32_t list[kMaxListed];
  for (int64_t first = 0; first < n; first += kMaxListed) {
    const int64_t here = std::min<int64_t>(kMaxListed, n - first);
    const C* const a = weights + first * (kTransposed ? step : 1);
    const C* const b = rows + first * padded;
    const int64_t count = list_weighted<C, kTransposed>(a, step, here, list);
    const bool listed = count >= 0 && count < here - here / 4;
    for (int64_t d = 0; d < padded; d += kWide) {
      Vec<C> sum[kTileRows][2];
      if (listed) {
        multiply<C, kStep, true>(a, step, b + d, padded, count, list, sum);
      } else {
        multiply<C, kStep>(a, step, b + d, padded, here, nullptr, sum);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          C* to = gradient + r * padded + d + v * kWidth;
          store(to, load(to) + sum[r][v]);
        }
      }
    }
  }
}
