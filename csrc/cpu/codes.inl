// Screening by 8-bit codes: four products an instruction and lane (AVX-512 VNNI).
//
// Note [Codes]. With a center m, g' = g − m = s·c + r for a scale s, codes |c| ≤ 127 and a residual
// r; likewise q' = q − m = t·d + p with q̂ = t·d. Then
//   |q − g|² = |q'|² + |g'|² − 2·q'·g',   q'·g' = s·t·(c·d) + q̂·r + p·g',
// so 2·q'·g' is within e = 2|q̂||r| + 2|p||g'| of 2·s·t·(c·d), whose sum is an exact integer. Frame:
// |q'|². Lower and upper bound: |g'|² − 2·s·t·(c·d) ∓ e, where e takes the largest |r| and |g'| of
// a panel of rows: a comparison with one number for a query and a panel.
//   Rounding, u = 2^-24: c·d, s·(c·d), the last multiply-add and |g'|² are rounded, which is less
// than 16u·|g'|² + 16u·|q̂||g'|: added to the panel's bounds. Lengths are taken in double of the
// differences from m, exact to 2^-53 of the larger operand, and rounded up by 2^-20 of themselves.
//   Rows that are not finite, all zeros or longer than 1e15 have |g'|² = NaN, which passes every
// comparison. All zeros, since for cosine they are as far as a right angle, whatever the codes say.
//
// 12 queries x 32 rows in registers: 768·⌈D/4⌉ products and 14 loads of 64 bytes or 4 for every 24
// instructions. Bytes: a panel of rows from the second-level cache for each panel of queries.

constexpr int kCodes = 4;  // of one lane
constexpr double kLonger = 1 + 0x1p-20;

SIAM_INLINE float length_up(double squares) { return rounded_up(std::sqrt(squares) * kLonger); }

struct CodedRow {
  float scale;
  double squares;   // |x − m|²
  double residual;  // |x − m − scale·codes|²
  double coded;     // |scale·codes|²
  bool fine;
};

// Codes of a row, ⌈D/4⌉·4 of them, zeros behind.
template <class T>
inline CodedRow code_row(const T* x, const float* center, int64_t columns, double* work,
                         int8_t* codes) {
  CodedRow row{0, 0, 0, 0, false};
  double largest = 0, squares = 0;
  for (int64_t k = 0; k < columns; ++k) {
    const double v = static_cast<double>(math::widen(x[k])) - static_cast<double>(center[k]);
    work[k] = v;
    largest = std::max(largest, std::fabs(v));
    squares += v * v;
  }
  std::memset(codes, 0, (columns + kCodes - 1) / kCodes * kCodes);
  row.squares = squares;
  row.fine = squares <= kMaxNorm;  // NaN is not
  if (!row.fine) return row;
  row.scale = static_cast<float>(largest / 127);
  if (row.scale < 0x1p-100f) {  // too small to code: all of it is residual
    row.scale = 0;
    row.residual = squares;
    return row;
  }
  const double scale = row.scale, inverse = 1 / scale;
  double residual = 0, coded = 0;
  for (int64_t k = 0; k < columns; ++k) {
    // To nearest by an addition, which vectorises; |v / scale| is 127 and a rounding at most.
    constexpr double kMagic = 0x1.8p52;
    const double c = std::clamp(work[k] * inverse + kMagic - kMagic, -127.0, 127.0);
    const double rest = work[k] - scale * c;
    codes[k] = static_cast<int8_t>(c);
    residual += rest * rest;
    coded += (scale * c) * (scale * c);
  }
  row.residual = residual;
  row.coded = coded;
  return row;
}

void pack_codes(const Matrix& rows, const float* center, uint8_t* codes, float* of_rows,
                float* bounds, int64_t begin, int64_t end) {
  const int64_t columns = rows.columns, depth = (columns + kCodes - 1) / kCodes;
  Aligned<double> work(columns);
  Aligned<int8_t> line(depth * kCodes);
  for (int64_t panel = begin; panel < end; ++panel) {
    uint8_t* const out = codes + panel * depth * kCodeColumns * kCodes;
    float* const scales = of_rows + panel * 2 * kCodeColumns;
    float* const squares = scales + kCodeColumns;
    double longest = 0, residual = 0;
    for (int c = 0; c < kCodeColumns; ++c) {
      const int64_t at = panel * kCodeColumns + c;
      CodedRow row{0, 0, 0, 0, true};
      bool zero = false;
      std::memset(line.data(), 0, depth * kCodes);
      if (at < rows.rows) {
        with_row_type<float>(rows, [&](auto data) {
          const auto* const from = data + at * rows.step;
          row = code_row(from, center, columns, work.data(), line.data());
          zero = is_zero_row(from, columns);
        });
      }
      const bool fine = row.fine && !zero;
      scales[c] = fine ? row.scale : 0;
      squares[c] = at >= rows.rows ? std::numeric_limits<float>::infinity()
                   : fine          ? static_cast<float>(row.squares)
                                   : std::numeric_limits<float>::quiet_NaN();
      if (fine) {
        longest = std::max(longest, row.squares);
        residual = std::max(residual, row.residual);
      }
      for (int64_t k = 0; k < depth; ++k) {
        uint32_t four = 0;
        if (fine) std::memcpy(&four, line.data() + k * kCodes, sizeof(four));
        four ^= 0x80808080u;  // c + 128
        std::memcpy(out + (k * kCodeColumns + c) * kCodes, &four, sizeof(four));
      }
    }
    float* const bound = bounds + panel * kCodeBounds;
    const float length = length_up(longest);
    bound[0] = length;                                              // times 2|p|
    bound[1] = rounded_up(length_up(residual) + 0x1p-20 * length);  // times 2|q̂|
    bound[2] = rounded_up(0x1p-20 * static_cast<double>(length) * length);
    bound[3] = 0;
  }
}

void begin_codes(const SearchTask<float>& task, const float* center, const CodedQueries& to) {
  const int64_t columns = task.rows.columns, depth = (columns + kCodes - 1) / kCodes;
  const int64_t rows = round_up(task.count, kTileRows);
  Aligned<double> work(columns);
  Aligned<int8_t> line(depth * kCodes);
  for (int64_t q = 0; q < rows; ++q) {
    const int64_t panel = q / kTileRows, r = q % kTileRows;
    to.start[q] = 0;
    to.factor[q] = to.residual[q] = to.magnitude[q] = 0;
    task.base[q] = -std::numeric_limits<float>::infinity();
    std::memset(line.data(), 0, depth * kCodes);
    if (q < task.count) {
      const CodedRow row =
          code_row(task.queries + q * task.padded, center, columns, work.data(), line.data());
      const bool fine = row.fine && !(task.cosine && task.zeros[q]);
      task.wild[q] = !fine;
      task.frame[q] = fine ? row.squares : 0;
      set_base(task, q);
      if (fine) {
        to.factor[q] = -2 * row.scale;
        to.residual[q] = 2 * length_up(row.residual);
        to.magnitude[q] = 2 * length_up(row.coded);
        int32_t sum = 0;
        for (int64_t k = 0; k < columns; ++k) sum += line.data()[k];
        to.start[q] = -128 * sum;
      } else {
        std::memset(line.data(), 0, depth * kCodes);
      }
    }
    for (int64_t k = 0; k < depth; ++k) {
      std::memcpy(to.codes + (panel * depth + k) * kTileRows + r, line.data() + k * kCodes, 4);
    }
  }
}

#if defined(SIAM_LEVEL_AVX512)
// sum += Σ of four products of bytes, b unsigned and a signed. Written out, since GCC copies the
// sum of the intrinsic to another register and back, and spills it.
SIAM_INLINE void add_products(__m512i& sum, __m512i b, __m512i a) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
}

struct CodeTile {
  const uint8_t* codes;  // of the first panel of rows
  int64_t panel_bytes;   // to the next one
  const int32_t* query;  // [depth, step]
  const int32_t* start;
  const float* factor;
  const float* limit;    // [rows][panels of rows]
  const float* of_rows;  // scales and squares of the first panel
};

// Values of kRows queries with kPanels panels of 32 rows that are not above their limit: a bit each
// in `passed` [kRows][kPanels], and where a word has any its values. Returns whether any has.
template <int kRows, int kPanels>
__attribute__((noinline, target("avx512vnni"))) bool screen_tile(const CodeTile& tile,
                                                                 int64_t depth, float* values,
                                                                 uint32_t* passed) {
  constexpr int kVectors = 2 * kPanels;
  __m512i sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_set1_epi32(tile.start[r]);
  }
  const uint8_t* right = tile.codes;
  const int32_t* left = tile.query;
  for (int64_t k = 0; k < depth; ++k, right += kCodeColumns * kCodes, left += kTileRows) {
    __m512i b[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      b[v] = _mm512_loadu_si512(right + v / 2 * tile.panel_bytes + v % 2 * 64);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_set1_epi32(left[r]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) add_products(sum[r][v], b[v], a);
    }
  }
  uint32_t any = 0;
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) {
    const float* const rows = tile.of_rows + p * 2 * kCodeColumns;
    const __m512 scale[2] = {_mm512_loadu_ps(rows), _mm512_loadu_ps(rows + 16)};
    const __m512 squares[2] = {_mm512_loadu_ps(rows + 32), _mm512_loadu_ps(rows + 48)};
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512 factor = _mm512_set1_ps(tile.factor[r]);
      const __m512 limit = _mm512_set1_ps(tile.limit[r * kPanels + p]);
      __m512 value[2];
      __mmask16 mask[2];
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][2 * p + v]), scale[v]);
        value[v] = _mm512_fmadd_ps(product, factor, squares[v]);
        mask[v] = _mm512_cmp_ps_mask(value[v], limit, _CMP_NGT_UQ);
      }
      const uint32_t both = _mm512_kunpackw(mask[1], mask[0]);
      passed[r * kPanels + p] = both;
      any |= both;
      // Without a branch: which rows pass can't be foreseen.
      _mm512_storeu_ps(values + (r * kPanels + p) * kCodeColumns, value[0]);
      _mm512_storeu_ps(values + (r * kPanels + p) * kCodeColumns + 16, value[1]);
    }
  }
  return any != 0;
}

// Adds the candidates of one query among kCodeColumns rows: those whose bit is set.
SIAM_INLINE void add_values(const SearchTask<float>& task, int64_t q, uint32_t bits,
                            const float* values, float wide, int64_t row) {
  const int64_t left = task.rows.rows - row;
  if (left < kCodeColumns) bits &= (uint32_t{1} << left) - 1;
  if (task.candidates.count[q] + kCodeColumns > task.candidates.capacity) {
    thin_out(task, q, kCodeColumns);
  }
  const __m512 around = _mm512_set1_ps(wide);
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const __m512 value = _mm512_loadu_ps(values + 16 * v);
    add_vector(task, q, static_cast<__mmask16>(bits >> (16 * v)), _mm512_sub_ps(value, around),
               value, around, row + 16 * v);
  }
}

// Queries [from, from + kRows) of a panel against panels of rows [begin, end), kPanels at a time.
template <int kRows, int kPanels>
SIAM_INLINE void screen_rows(const SearchTask<float>& task, const CodedRows& rows,
                             const CodedQueries& queries, int64_t panel, int from, int64_t begin,
                             int64_t end) {
  const int64_t depth = (task.rows.columns + kCodes - 1) / kCodes;
  const int64_t panel_bytes = depth * kCodeColumns * kCodes, first = panel * kTileRows + from;
  alignas(64) float values[kRows * kPanels * kCodeColumns];
  float limit[kRows * kPanels];
  uint32_t passed[kRows * kPanels];
  for (int64_t p = begin; p + kPanels <= end; p += kPanels) {
    const float* const bounds = rows.bounds + p * kCodeBounds;
    // The error of a query with a panel, and what it may be at most to pass.
    const auto error = [&](int r, int each) {
      const float* const of = bounds + each * kCodeBounds;
      return queries.residual[first + r] * of[0] + queries.magnitude[first + r] * of[1] + of[2];
    };
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      for (int each = 0; each < kPanels; ++each) {
        limit[r * kPanels + each] = task.base[first + r] + error(r, each) * (1 + 0x1p-20f);
      }
    }
    const CodeTile tile{rows.codes + p * panel_bytes,
                        panel_bytes,
                        queries.codes + panel * depth * kTileRows + from,
                        queries.start + first,
                        queries.factor + first,
                        limit,
                        rows.rows + p * 2 * kCodeColumns};
    if (!screen_tile<kRows, kPanels>(tile, depth, values, passed)) continue;
    for (int r = 0; r < kRows && first + r < task.count; ++r) {
      for (int each = 0; each < kPanels; ++each) {
        const uint32_t bits = passed[r * kPanels + each];
        if (bits == 0) continue;
        add_values(task, first + r, bits, values + (r * kPanels + each) * kCodeColumns,
                   error(r, each) * (1 + 0x1p-20f), (p + each) * kCodeColumns);
      }
    }
  }
}
#endif

void search_codes(const SearchTask<float>& task, const CodedRows& rows, const CodedQueries& queries,
                  int64_t begin, int64_t end) {
#if defined(SIAM_LEVEL_AVX512)
  constexpr int kWide = 4;  // panels at a time for a single query, so that its sums don't wait
  const int64_t panel_bytes = (task.rows.columns + kCodes) * kCodeColumns;
  // Rows that stay in the second-level cache while the queries pass over them.
  const int64_t block = std::max<int64_t>((int64_t{192} << 10) / panel_bytes / kWide, 1) * kWide;
  for (int64_t p = begin; p < end; p += block) {
    const int64_t until = std::min(end, p + block);
    for (int64_t q = 0; q < task.count; q += kTileRows) {
      const int64_t panel = q / kTileRows;
      if (task.count - q > 2) {
        screen_rows<kTileRows, 1>(task, rows, queries, panel, 0, p, until);
        continue;
      }
      const int64_t wide = p + (until - p) / kWide * kWide;
      for (int64_t r = 0; r < task.count - q; ++r) {
        screen_rows<1, kWide>(task, rows, queries, panel, static_cast<int>(r), p, wide);
        screen_rows<1, 1>(task, rows, queries, panel, static_cast<int>(r), wide, until);
      }
    }
  }
#endif
}
