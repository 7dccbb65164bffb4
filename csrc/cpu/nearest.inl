// What a search keeps: candidates, and the rows that were computed directly.

// a·b + c, rounded once at every level.
template <class C>
SIAM_INLINE Vec<C> fused_multiply_add(Vec<C> a, Vec<C> b, Vec<C> c) {
#if defined(SIAM_LEVEL_GENERIC)
  C result[Vec<C>::kWidth];
  for (int l = 0; l < Vec<C>::kWidth; ++l) result[l] = std::fma(a.v[l], b.v[l], c.v[l]);
  return load<C>(result);
#else
  return multiply_add(a, b, c);
#endif
}

// Σ(q−g)² in the one order of DESIGN's promise 5: 16 sums, element k to sum k mod 16, each by a
// fused multiply-add, then halving adds, 8, 4, 2, 1. `query` has zeros behind, the row has not.
// kRows rows, `step` apart, side by side: their chains of additions don't wait for each other.
template <int kRows, class C, class T>
SIAM_INLINE void direct_distances(const C* query, const T* row, int64_t step, int64_t columns,
                                  C* distances) {
  constexpr int kWidth = Vec<C>::kWidth, kVectors = 16 / kWidth;
  Vec<C> sum[kRows][kVectors];
  int64_t k = 0;
  for (; k + 16 <= columns; k += 16) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vec<C> own = load(query + k + v * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec<C> d = own - load(row + r * step + k + v * kWidth);
        sum[r][v] = fused_multiply_add(d, d, sum[r][v]);
      }
    }
  }
  if (k < columns) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int here = static_cast<int>(std::min<int64_t>(kWidth, columns - k - v * kWidth));
      if (here <= 0) break;
      const Vec<C> own = load(query + k + v * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const T* const at = row + r * step + k + v * kWidth;
        const Vec<C> d = own - (here == kWidth ? load(at) : load_first(at, here));
        sum[r][v] = fused_multiply_add(d, d, sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int half = kVectors / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int v = 0; v < half; ++v) sum[r][v] = sum[r][v] + sum[r][v + half];
    }
    distances[r] = add_lanes(sum[r][0]);
  }
}

template <class C, class T>
SIAM_INLINE C direct_distance(const C* query, const T* row, int64_t columns) {
  C distance;
  direct_distances<1>(query, row, 0, columns, &distance);
  return distance;
}

template <class T>
SIAM_INLINE bool is_zero_row(const T* row, int64_t columns) {
  for (int64_t k = 0; k < columns; ++k) {
    if (math::widen(row[k]) != 0) return false;
  }
  return true;
}

// A row of a task's matrix in its own type: visit(row pointer).
template <class C, class Visit>
SIAM_INLINE void with_row_type(const Matrix& m, const Visit& visit) {
  if constexpr (sizeof(C) == 8) {
    visit(static_cast<const double*>(m.data));
  } else {
    switch (m.dtype) {
      case DType::kFloat16: return visit(static_cast<const math::Half*>(m.data));
      case DType::kBFloat16: return visit(static_cast<const math::BFloat16*>(m.data));
      default: return visit(static_cast<const float*>(m.data));
    }
  }
}

template <class C, class T>
SIAM_INLINE C pair_distance(const SearchTask<C>& task, int64_t q, const T* rows, int64_t row) {
  const T* const at = rows + row * task.rows.step;
  if (task.cosine && (task.zeros[q] || is_zero_row(at, task.rows.columns))) return C(2);
  return direct_distance(task.queries + q * task.padded, at, task.rows.columns);
}

// --- what a query keeps
// ----------------------------------------------------------------------------

template <class D>
inline void sift_down(Found<D>* heap, int64_t count, Found<D> item) {
  int64_t at = 0;
  for (;;) {
    int64_t child = 2 * at + 1;
    if (child >= count) break;
    if (child + 1 < count && comes_before(heap[child], heap[child + 1])) ++child;
    if (!comes_before(item, heap[child])) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = item;
}
template <class D>
inline void sift_up(Found<D>* heap, int64_t at, Found<D> item) {
  while (at > 0) {
    const int64_t parent = (at - 1) / 2;
    if (!comes_before(heap[parent], item)) break;
    heap[at] = heap[parent];
    at = parent;
  }
  heap[at] = item;
}

// Whether anything of this distance would still be kept; NaN is, until there are k others.
template <class D>
SIAM_INLINE bool accepts(D bound, D distance) {
  return !(distance > bound);
}

// What was computed directly, or counted: a row of the k nearest, or one within the radius.
template <class Task, class D>
SIAM_INLINE void keep(const Task& task, int64_t q, D distance, int64_t position) {
  const Found<D> found{distance, position};
  if (task.k == 0) {
    if (distance <= task.bound[q]) task.within[q].push_back(found);
    return;
  }
  Found<D>* const heap = task.nearest + q * task.k;
  int64_t& count = task.nearest_count[q];
  if (count < task.k) {
    sift_up(heap, count, found);
    if (++count < task.k) return;
  } else {
    if (!comes_before(found, heap[0])) return;
    sift_down(heap, count, found);
  }
  if (heap[0].distance < task.bound[q]) task.bound[q] = heap[0].distance;
}

// --- screening -----------------------------------------------------------------------------------
//
// Note [Screening]. Let u = 2^-24. A screening form gives for each pair of rows within its
// assumptions numbers with
//   frame + lower ≤ |q − g|² ≤ frame + upper
// in exact arithmetic on the stored q and g. The distance that decides is the computed direct sum:
//   - δ = fl(q − g) is within u·|q − g| of it, so δ² within 2u + u² of its square;
//   - a chain of ⌈D/16⌉ fused multiply-adds and four adds rounds ⌈D/16⌉ + 4 times, all terms ≥ 0;
//   - squares below the smallest normal number lose at most 2^-149 each, D of them.
// So it is within γ·|q − g|² + tiny of it, γ = (⌈D/16⌉ + 8)·u, tiny = D·2^-148. It exceeds T, and
// the pair is dropped, if frame + lower > (T + tiny)·(1 + 2γ), as 1/(1 − γ) < 1 + 2γ for γ < ½.
// `base` is that, less the frame, with 32u·(T + |frame|) for the roundings of the comparison,
// rounded up. The other way round, frame + upper gives a distance that is at most (frame +
// upper)·(1 + γ) + tiny.

template <class C>
SIAM_INLINE double direct_roundings(int64_t columns) {
  return static_cast<double>((columns + 15) / 16 + 8) * (std::numeric_limits<C>::epsilon() / 2);
}

inline float rounded_up(double x) {
  const float f = static_cast<float>(x);
  return f < x ? std::nextafter(f, std::numeric_limits<float>::infinity()) : f;
}

SIAM_INLINE double tiny_of(int64_t columns) { return static_cast<double>(columns + 1) * 0x1p-120; }

inline void set_base(const SearchTask<float>& task, int64_t q) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const double bound = task.bound[q], frame = task.frame[q];
  if (task.wild[q] || !(bound < kInfinity)) {
    task.base[q] = kInfinity;
    return;
  }
  if (bound < 0) {  // a radius that nothing is within
    task.base[q] = -kInfinity;
    return;
  }
  const int64_t columns = task.rows.columns;
  const double gamma = direct_roundings<float>(columns);
  const double limit = (bound + tiny_of(columns)) * (1 + 2 * gamma);
  task.base[q] = rounded_up(limit - frame + 32 * 0x1p-24 * (limit + std::fabs(frame)));
}

// A number that at least k, and hardly more, of n values are not above: by bisection, since the
// k-th itself is not needed. +inf if there are not k finite ones.
SIAM_INLINE float bound_on_kth(const float* values, int64_t n, int64_t k) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto count = [&](float limit) {
    int32_t below = 0;
    for (int64_t at = 0; at < n; ++at) below += values[at] <= limit ? 1 : 0;
    return below;
  };
  float low = kInfinity, high = -kInfinity;
  for (int64_t at = 0; at < n; ++at) {
    low = std::min(low, values[at]);
    high = std::max(high, values[at] < kInfinity ? values[at] : -kInfinity);
  }
  if (!(high < kInfinity) || count(high) < k) return kInfinity;
  if (!(low > -kInfinity)) return high;
  for (int step = 0; step < 16; ++step) {  // at least k are not above `high`
    const float middle = low + (high - low) / 2;
    if (!(low < middle && middle < high)) break;
    const int64_t below = count(middle);
    if (below < k) {
      low = middle;
    } else {
      high = middle;
      if (below <= k + k / 16) break;
    }
  }
  return high;
}

// Computes a query's candidates directly, as far as they still pass: the most promising first,
// since what they give may rule out the rest.
inline void settle(const SearchTask<float>& task, int64_t q) {
  const Candidates& all = task.candidates;
  float* const lower = all.lower + q * all.capacity;
  int32_t* const row = all.row + q * all.capacity;
  const int64_t count = all.count[q];
  int64_t front = count;
  if (task.k > 0 && task.k < count) {
    const float first = bound_on_kth(lower, count, task.k);
    front = 0;
    for (int64_t at = 0; at < count; ++at) {
      const float here = lower[at];
      const int32_t own = row[at];
      lower[at] = lower[front];
      row[at] = row[front];
      lower[front] = here;
      row[front] = own;
      front += here <= first ? 1 : 0;
    }
  }
  with_row_type<float>(task.rows, [&](auto rows) {
    const int64_t row_bytes = task.rows.columns * static_cast<int64_t>(sizeof(*rows));
    constexpr int64_t kAhead = 6, kMost = 512;  // rows under way, and how much of each
    for (int64_t at = 0; at < count; ++at) {
      if (at == front) set_base(task, q);
      if (at + kAhead < count && !(lower[at + kAhead] > task.base[q])) {
        const char* const next =
            reinterpret_cast<const char*>(rows + row[at + kAhead] * task.rows.step);
        for (int64_t b = 0; b < std::min(row_bytes, kMost); b += 64) __builtin_prefetch(next + b);
      }
      if (lower[at] > task.base[q]) continue;
      const float distance = pair_distance(task, q, rows, row[at]);
      if (accepts(task.bound[q], distance)) keep(task, q, distance, task.first + row[at]);
    }
  });
  set_base(task, q);
  all.count[q] = 0;
}

// Lowers what a query accepts to what its candidates' upper bounds prove, and drops the others.
inline void rule_out(const SearchTask<float>& task, int64_t q) {
  const Candidates& all = task.candidates;
  float* const lower = all.lower + q * all.capacity;
  float* const upper = all.upper + q * all.capacity;
  int32_t* const row = all.row + q * all.capacity;
  const int64_t count = all.count[q];
  const double kth = bound_on_kth(upper, count, task.k);
  const double gamma = direct_roundings<float>(task.rows.columns);
  const double frame = task.frame[q];
  const double limit =
      (frame + kth + 32 * 0x1p-24 * (std::fabs(frame) + std::fabs(kth))) * (1 + gamma) +
      tiny_of(task.rows.columns);
  if (limit < task.bound[q]) {
    task.bound[q] = rounded_up(std::max(limit, 0.0));
    set_base(task, q);
  }
  const float base = task.base[q];
  int64_t kept = 0;
  for (int64_t at = 0; at < count; ++at) {
    lower[kept] = lower[at];
    upper[kept] = upper[at];
    row[kept] = row[at];
    kept += lower[at] > base ? 0 : 1;
  }
  all.count[q] = static_cast<int32_t>(kept);
}

// Makes room for so many more candidates of a query, and some: else it would be wanted soon again.
__attribute__((noinline)) inline void thin_out(const SearchTask<float>& task, int64_t q,
                                               int64_t room) {
  const Candidates& all = task.candidates;
  if (task.k > 0 && all.count[q] >= task.k && !task.wild[q]) rule_out(task, q);
  if (all.count[q] > std::min(all.capacity * 3 / 4, all.capacity - room)) settle(task, q);
}

SIAM_INLINE void add_candidate(const SearchTask<float>& task, int64_t q, float lower, float upper,
                               int64_t row) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  if (!(lower <= upper)) {  // a row beyond what screening can do
    lower = -kInfinity;
    upper = kInfinity;
  }
  const Candidates& all = task.candidates;
  const int64_t at = q * all.capacity + all.count[q];
  all.lower[at] = lower;
  all.upper[at] = upper;
  all.row[at] = static_cast<int32_t>(row);
  if (++all.count[q] == all.capacity) thin_out(task, q, 1);
}

#if defined(SIAM_LEVEL_AVX512)
// Those of 16 rows whose bit is set; there is room for all of them. Branch-free, since which rows
// pass can't be foreseen.
SIAM_INLINE void add_vector(const SearchTask<float>& task, int64_t q, __mmask16 mask, __m512 lower,
                            __m512 value, __m512 wide, int64_t row) {
  const Candidates& all = task.candidates;
  const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  // A row beyond what screening can do passes whatever comes.
  const __mmask16 wild = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512 low = _mm512_mask_sub_ps(lower, wild, _mm512_setzero_ps(), infinity);
  const __m512 high = _mm512_mask_mov_ps(_mm512_add_ps(value, wide), wild, infinity);
  const __m512i rows = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(row)));
  const int64_t at = q * all.capacity + all.count[q];
  _mm512_storeu_ps(all.lower + at, _mm512_maskz_compress_ps(mask, low));
  _mm512_storeu_ps(all.upper + at, _mm512_maskz_compress_ps(mask, high));
  _mm512_storeu_si512(all.row + at, _mm512_maskz_compress_epi32(mask, rows));
  all.count[q] += __builtin_popcount(mask);
}
#endif

template <class C>
void finish_search(const SearchTask<C>& task) {
  for (int64_t q = 0; q < task.count; ++q) {
    if constexpr (sizeof(C) == 4) {
      if (task.candidates.capacity > 0) {
        if (task.k > 0 && task.candidates.count[q] >= task.k && !task.wild[q]) rule_out(task, q);
        settle(task, q);
      }
    }
    Found<C>* const list = task.k > 0 ? task.nearest + q * task.k : task.within[q].data();
    const int64_t count =
        task.k > 0 ? task.nearest_count[q] : static_cast<int64_t>(task.within[q].size());
    std::sort(list, list + count,
              [](const Found<C>& a, const Found<C>& b) { return comes_before(a, b); });
  }
}

// Every pair of the task's queries with rows [begin, end), without screening.
template <class C>
void search_directly(const SearchTask<C>& task, int64_t begin, int64_t end) {
  // Rows that stay in the first-level cache while the queries pass over them.
  constexpr int64_t kBytes = 16 << 10;
  constexpr int kSide = 2;                  // rows at a time
  constexpr int64_t kAheadBytes = 8 << 10;  // twice the rate of hardware prefetching alone
  const int64_t row_bytes =
      task.rows.columns *
      (sizeof(C) == 8 || task.rows.dtype == DType::kFloat32 ? int64_t{sizeof(C)} : 2);
  const int64_t block = std::max<int64_t>(
      kSide, kBytes / (task.padded * static_cast<int64_t>(sizeof(C)) + 1) / kSide * kSide);
  with_row_type<C>(task.rows, [&](auto rows) {
    for (int64_t first = begin; first < end; first += block) {
      const int64_t here = std::min(end, first + block);
      for (int64_t q = 0; q < task.count; ++q) {
        const auto offer = [&](int64_t row, C distance) {
          if (accepts(task.bound[q], distance)) keep(task, q, distance, task.first + row);
        };
        int64_t row = first;
        const bool right_angles = task.cosine && task.zeros[q];
        for (; !right_angles && row + kSide <= here; row += kSide) {
          const auto* const at = rows + row * task.rows.step;
          if (q == 0) {  // the other queries find the block in the cache
            const char* const next = reinterpret_cast<const char*>(at) + kAheadBytes;
            for (int64_t byte = 0; byte < kSide * row_bytes; byte += 64) {
              __builtin_prefetch(next + byte);
            }
          }
          C distance[kSide];
          direct_distances<kSide>(task.queries + q * task.padded, at, task.rows.step,
                                  task.rows.columns, distance);
          for (int r = 0; r < kSide; ++r) {
            if (!accepts(task.bound[q], distance[r])) continue;
            // For cosine a row of zeros is at 2, farther than the 1 that was computed: it is enough
            // to look where that would be accepted.
            offer(row + r, task.cosine ? pair_distance(task, q, rows, row + r) : distance[r]);
          }
        }
        for (; row < here; ++row) offer(row, pair_distance(task, q, rows, row));
      }
    }
  });
}

template <class C>
void normalize_rows(const Matrix& m, C* to, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    C* const out = to + row * m.columns;
    widen_row(m, row, out);
    const double norm = std::sqrt(squared_norm(out, m.columns));
    if (norm == 0) continue;
    for (int64_t k = 0; k < m.columns; ++k) {
      out[k] = static_cast<C>(static_cast<double>(out[k]) / norm);
    }
  }
}
