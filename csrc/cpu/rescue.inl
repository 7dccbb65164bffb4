// Pairs that the expanded form can't do: near-duplicates, sums outside of C's safe range, rows that
// are not finite.

template <class C>
struct SafeRange;  // of |x|² + |y|², where d² and the error bound hold
template <>
struct SafeRange<float> {
  static constexpr float kLow = 1e-30f, kHigh = 1e37f;
};
template <>
struct SafeRange<double> {
  static constexpr double kLow = 1e-280, kHigh = 1e300;
};

// Σ(x−y)² over whole vectors, in the one order of DESIGN's promise 5: 16 sums, element k to sum
// k mod 16 by fused multiply-add, then halving adds.
template <class C>
SIAM_INLINE C direct_squared(const C* x, const C* y, int64_t padded) {
  constexpr int kVectors = 16 / Vec<C>::kWidth;
  Vec<C> sum[kVectors];
  for (int64_t k = 0; k < padded; k += 16) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vec<C> d = load(x + k + v * Vec<C>::kWidth) - load(y + k + v * Vec<C>::kWidth);
      sum[v] = multiply_add(d, d, sum[v]);
    }
  }
#pragma GCC unroll 8
  for (int half = kVectors / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int v = 0; v < half; ++v) sum[v] = sum[v] + sum[v + half];
  }
  return add_lanes(sum[0]);
}

template <class C>
SIAM_INLINE bool equal_rows(const C* x, const C* y, int64_t padded) {
  return std::memcmp(x, y, sizeof(C) * padded) == 0;
}

// to[d] += w · (y[d] − x[d])
template <class C>
SIAM_INLINE void add_difference(C w, const C* x, const C* y, int64_t padded, C* to) {
  const Vec<C> weight(w);
  for (int64_t d = 0; d < padded; d += Vec<C>::kWidth) {
    store(to + d, multiply_add(weight, load(y + d) - load(x + d), load(to + d)));
  }
}

// The same for many y with one x: some are gathered, and then both x and the sums stay in registers
// while they are added in order. Where embeddings collapsed, or are far from 0, most pairs come
// here.
template <class C>
class Differences {
 public:
  SIAM_INLINE Differences(const C* x, int64_t padded, C* to) : x_(x), padded_(padded), to_(to) {}
  SIAM_INLINE void add(C weight, const C* y) {
    if (count_ == kMost) flush();
    weight_[count_] = weight;
    y_[count_++] = y;
  }
  // Must be called in the end.
  SIAM_INLINE void flush() {
    constexpr int kWidth = Vec<C>::kWidth;
    if (count_ == 1) {
      add_difference(weight_[0], x_, y_[0], padded_, to_);
    } else if (count_ > 1) {
      int64_t d = 0;
      for (; d + kVectors * kWidth <= padded_; d += kVectors * kWidth) add_chunk<kVectors>(d);
      for (; d < padded_; d += kWidth) add_chunk<1>(d);
    }
    count_ = 0;
  }

 private:
  static constexpr int kMost = 32, kVectors = sizeof(Vec<C>) == 64 ? 8 : 4;

  template <int kChunk>
  SIAM_INLINE void add_chunk(int64_t d) {
    Vec<C> own[kChunk], sum[kChunk];
#pragma GCC unroll 8
    for (int v = 0; v < kChunk; ++v) {
      own[v] = load(x_ + d + v * Vec<C>::kWidth);
      sum[v] = load(to_ + d + v * Vec<C>::kWidth);
    }
    for (int k = 0; k < count_; ++k) {
      const Vec<C> weight(weight_[k]);
      const C* const y = y_[k] + d;
#pragma GCC unroll 8
      for (int v = 0; v < kChunk; ++v) {
        sum[v] = multiply_add(weight, load(y + v * Vec<C>::kWidth) - own[v], sum[v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kChunk; ++v) store(to_ + d + v * Vec<C>::kWidth, sum[v]);
  }

  const C* x_;
  int64_t padded_;
  C* to_;
  int count_ = 0;
  C weight_[kMost];
  const C* y_[kMost];
};

inline double element(const Matrix& m, int64_t row, int64_t k) {
  const int64_t at = row * m.step + k;
  switch (m.dtype) {
    case DType::kFloat16: return math::widen(static_cast<const math::Half*>(m.data)[at]);
    case DType::kBFloat16: return math::widen(static_cast<const math::BFloat16*>(m.data)[at]);
    case DType::kFloat32: return static_cast<const float*>(m.data)[at];
    case DType::kFloat64: return static_cast<const double*>(m.data)[at];
  }
  return 0;
}

inline bool has_nan(const Matrix& m, int64_t row) {
  for (int64_t k = 0; k < m.columns; ++k) {
    if (std::isnan(element(m, row, k))) return true;
  }
  return false;
}

// Σ(x−y)² or Σ|x−y| of two rows as they are stored, in double.
__attribute__((noinline, cold)) inline double exact_sum(const Matrix& x, int64_t i, const Matrix& y,
                                                        int64_t j, bool squares) {
  double sum = 0;
  for (int64_t k = 0; k < x.columns; ++k) {
    const double d = element(x, i, k) - element(y, j, k);
    sum += squares ? d * d : std::fabs(d);
  }
  return sum;
}

// As wide as C, so that a loop over both is one vector loop.
template <class C>
using Flag = typename std::conditional<sizeof(C) == 4, int32_t, int64_t>::type;

// d² of a row of products from the norms, and which columns need more than that. Whether any does.
template <class C>
SIAM_INLINE bool expand_row(const C* norms, C norm, C threshold, int n, C* sums, Flag<C>* flag) {
  Flag<C> any = 0;
  for (int c = 0; c < n; ++c) {
    const C size = norm + norms[c];
    const C d2 = size - C(2) * sums[c];
    const bool fine =
        (d2 >= threshold * size) & (size >= SafeRange<C>::kLow) & (size <= SafeRange<C>::kHigh);
    flag[c] = fine ? 0 : 1;
    any |= flag[c];
    sums[c] = d2;
  }
  return any != 0;
}
// For sums of |x − y| there is nothing to rescue but what is not finite.
template <class C>
SIAM_INLINE bool check_row(const C* norms, C norm, int n, const C* sums, Flag<C>* flag) {
  Flag<C> any = 0;
  for (int c = 0; c < n; ++c) {
    const C size = norm + norms[c];
    const bool fine = (size == size) & (sums[c] <= SafeRange<C>::kHigh);
    flag[c] = fine ? 0 : 1;
    any |= flag[c];
  }
  return any != 0;
}

// visit(c) for every c in [0, n) that is flagged; few are, but each row's pair with itself.
template <class C, class Visit>
SIAM_INLINE void each_flagged(const Flag<C>* flag, int n, const Visit& visit) {
  constexpr int kWidth = Vec<C>::kWidth;
  for (int c = 0; c < n;) {
    const int end = std::min(c + kWidth, n);
    if (end - c == kWidth) {
      Vec<C> bits;
      std::memcpy(&bits.v, flag + c, sizeof(bits.v));
      if (!any_lane(bits)) {
        c = end;
        continue;
      }
    }
    for (; c < end; ++c) {
      if (flag[c]) visit(c);
    }
  }
}

// What becomes of a pair that was flagged.
enum class Rescue {
  kClose,    // both rows are finite: `sum` is right, the gradient is formed from the difference
  kExtreme,  // beyond C's range or not finite: only double will do
};

// The sum of a flagged pair of finite rows, where C can hold it.
template <class C>
SIAM_INLINE Rescue rescue(const C* x, const C* y, int64_t padded, C* sum) {
  const C d2 = direct_squared(x, y, padded);
  *sum = d2;
  if (d2 >= SafeRange<C>::kLow && d2 <= SafeRange<C>::kHigh) return Rescue::kClose;
  return equal_rows(x, y, padded) ? Rescue::kClose : Rescue::kExtreme;
}
