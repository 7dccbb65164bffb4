// The row engine: SIMD sums over each row, the scalar formula, the gradient row.
//
// Included inside the namespace of one level, after simd.inl and math/steps.inl. Each row is read
// from memory once: the gradient pass finds it in the first-level cache. The order of additions in
// a row depends on D and the level alone, so a row's bits don't depend on its neighbours.
// A row whose float sum of squares leaves the safe range is done again in double ("rescued"), so
// that a distance of 1e-25 or 1e25 is as exact as one of 1.

// How a row's elements are walked: V holds kWidth of them.
template <class T, class C_, bool kVector>
struct Lanes;

template <class T, class C_>
struct Lanes<T, C_, true> {
  using C = C_;
  using V = Vec<C>;
  static constexpr int kWidth = V::kWidth;
  static constexpr bool kCanStream = std::is_same<T, C>::value && SIAM_VECTOR_BYTES >= 32;
  static SIAM_INLINE V load_all(const T* p) { return load(p); }
  static SIAM_INLINE V load_some(const T* p, int n) { return load_first(p, n); }
  static SIAM_INLINE void store_all(T* p, V v) { store(p, v); }
  static SIAM_INLINE void store_some(T* p, V v, int n) { store_first(p, v, n); }
  static SIAM_INLINE C total(V v) { return add_lanes(v); }
  static SIAM_INLINE V some(C x, int n) { return first_lanes(x, n); }
};

template <class T, class C_>
struct Lanes<T, C_, false> {
  using C = C_;
  using V = C;
  static constexpr int kWidth = 1;
  static constexpr bool kCanStream = false;
  static SIAM_INLINE V load_all(const T* p) { return static_cast<C>(math::widen(*p)); }
  static SIAM_INLINE V load_some(const T* p, int) { return load_all(p); }
  static SIAM_INLINE void store_all(T* p, V v) { *p = math::narrow<T>(v); }
  static SIAM_INLINE void store_some(T* p, V v, int) { store_all(p, v); }
  static SIAM_INLINE C total(V v) { return v; }
  static SIAM_INLINE V some(C x, int) { return x; }
};

template <class Row, class T, class L>
SIAM_INLINE void row_sums(const math::StepParams& params, StepContext<typename L::V>& step,
                          const T* const* x, int64_t columns, typename L::C* sums) {
  using V = typename L::V;
  using C = typename L::C;
  constexpr int kInputs = Row::kInputs, kSums = Row::kSums, kWidth = L::kWidth;
  // Independent chains of additions hide the latency of a fused multiply-add.
  constexpr int kChains = kWidth == 1 ? 1 : kSums == 1 ? 4 : 2;
  C start = 0;
  if (!Row::Element::kVector && !step.counting && params.p < 0 && std::isinf(params.p)) {
    start = std::numeric_limits<C>::infinity();  // the identity of min
  }
  V chain[kChains][kSums];
#pragma GCC unroll 4
  for (int u = 0; u < kChains; ++u) {
#pragma GCC unroll 4
    for (int k = 0; k < kSums; ++k) chain[u][k] = V(start);
  }
  int64_t c = 0;
  for (; c + kChains * kWidth <= columns; c += kChains * kWidth) {
#pragma GCC unroll 4
    for (int u = 0; u < kChains; ++u) {
      V v[kInputs];
#pragma GCC unroll 4
      for (int j = 0; j < kInputs; ++j) v[j] = L::load_all(x[j] + c + u * kWidth);
      RowStep<Row>::accumulate(step, v, chain[u]);
    }
  }
  for (; c + kWidth <= columns; c += kWidth) {
    V v[kInputs];
#pragma GCC unroll 4
    for (int j = 0; j < kInputs; ++j) v[j] = L::load_all(x[j] + c);
    RowStep<Row>::accumulate(step, v, chain[0]);
  }
  if (c < columns) {
    const int n = static_cast<int>(columns - c);
    V v[kInputs];
#pragma GCC unroll 4
    for (int j = 0; j < kInputs; ++j) v[j] = L::load_some(x[j] + c, n);
    const V eps = step.eps;
    if (Row::Element::kShifted) step.eps = L::some(static_cast<C>(params.eps), n);
    RowStep<Row>::accumulate(step, v, chain[0]);
    step.eps = eps;
  }
#pragma GCC unroll 4
  for (int k = 0; k < kSums; ++k) {
#pragma GCC unroll 4
    for (int u = 1; u < kChains; ++u) chain[0][k] = chain[0][k] + chain[u][k];
    sums[k] = L::total(chain[0][k]);
  }
}

template <class Row, class T, class L, bool kAll, bool kStream>
SIAM_INLINE void row_gradient(const StepContext<typename L::V>& step, const T* const* x,
                              T* const* out, int64_t columns, const typename L::V* coefficient) {
  using V = typename L::V;
  constexpr int kInputs = Row::kInputs, kWidth = L::kWidth;
  int64_t c = 0;
  for (; c + kWidth <= columns; c += kWidth) {
    V v[kInputs], g[kInputs];
#pragma GCC unroll 4
    for (int j = 0; j < kInputs; ++j) v[j] = L::load_all(x[j] + c);
    RowStep<Row>::gradient(step, v, coefficient, g);
#pragma GCC unroll 4
    for (int j = 0; j < kInputs; ++j) {
      if constexpr (kStream && L::kCanStream) {
        store_streaming(out[j] + c, g[j]);
      } else {
        if (kAll || out[j]) L::store_all(out[j] + c, g[j]);
      }
    }
  }
  if (c < columns) {
    const int n = static_cast<int>(columns - c);
    V v[kInputs], g[kInputs];
#pragma GCC unroll 4
    for (int j = 0; j < kInputs; ++j) v[j] = L::load_some(x[j] + c, n);
    RowStep<Row>::gradient(step, v, coefficient, g);
#pragma GCC unroll 4
    for (int j = 0; j < kInputs; ++j) {
      if (kAll || out[j]) L::store_some(out[j] + c, g[j], n);
    }
  }
}

template <class Row, class T, class L>
SIAM_INLINE void row_zeros(T* const* out, int64_t columns, bool stream) {
  using V = typename L::V;
  for (int j = 0; j < Row::kInputs; ++j) {
    if (!out[j]) continue;
    if constexpr (L::kCanStream) {
      if (stream) {
        const V zero(typename L::C(0));
        for (int64_t c = 0; c < columns; c += L::kWidth) store_streaming(out[j] + c, zero);
        continue;
      }
    }
    std::memset(static_cast<void*>(out[j]), 0, sizeof(T) * columns);
  }
}

template <class Row>
SIAM_INLINE bool needs_rescue(const float* sums) {
  if (!Row::Element::kSquares) return false;
  constexpr int first = std::is_same<Row, math::Products>::value ? 1 : 0;
#pragma GCC unroll 4
  for (int k = first; k < Row::kSums; ++k) {
    if (!(sums[k] >= 1e-30f && sums[k] <= 1e37f) && sums[k] == sums[k]) return true;
  }
  return false;
}
template <class Row>
SIAM_INLINE bool needs_rescue(const double*) {
  return false;
}

struct RowOutcome {
  double value;
  double distance;           // in the loss's own unit: of the pair, or of the positive
  double negative_distance;  // triplets
  bool collapsed;
};

template <class F, class Row, class T, class L>
SIAM_INLINE RowOutcome do_row(const RowArgs& args, const typename F::Params& params,
                              const T* const* x, T* const* out, Label label, double upstream,
                              bool gradient, bool all, bool stream);

// Cold: kept out of line so that the vector path stays small.
template <class F, class Row, class T>
__attribute__((noinline, cold)) RowOutcome rescued_row(const RowArgs& args,
                                                       const typename F::Params& params,
                                                       const T* const* x, T* const* out,
                                                       Label label, double upstream,
                                                       bool gradient) {
  return do_row<F, Row, T, Lanes<T, double, false>>(args, params, x, out, label, upstream, gradient,
                                                    false, false);
}

template <class F, class Row, class T, class L>
SIAM_INLINE RowOutcome do_row(const RowArgs& args, const typename F::Params& params,
                              const T* const* x, T* const* out, Label label, double upstream,
                              bool gradient, bool all, bool stream) {
  using V = typename L::V;
  using C = typename L::C;
  constexpr int kInputs = Row::kInputs, kSums = Row::kSums;
  StepContext<V> step;
  step.eps = V(static_cast<C>(params.eps));
  step.p = params.p;
  C sums[kSums];
  row_sums<Row, T, L>(params, step, x, args.columns, sums);
  if constexpr (std::is_same<C, float>::value) {
    if (__builtin_expect(needs_rescue<Row>(sums), 0)) {
      return rescued_row<F, Row, T>(args, params, x, out, label, upstream, gradient);
    }
  }
  const math::Terms<C, kSums> terms = F::template evaluate<Row>(params, sums, label);
  RowOutcome outcome{static_cast<double>(terms.value), 0, 0, false};
  if (__builtin_expect(args.want_stats, 0)) {
    const auto distances = F::template distances<Row>(params, sums);
    outcome.distance = distances.first;
    outcome.negative_distance = distances.second;
    outcome.collapsed = sums[kInputs == 3 ? 1 : 0] == 0;
  }
  if (!gradient) return outcome;

  bool zero = true;
  V coefficient[kSums];
#pragma GCC unroll 4
  for (int k = 0; k < kSums; ++k) {
    // A slope of 0 wins over any upstream gradient: an inactive row's gradient is exactly 0.
    const C c = terms.slope[k] == 0
                    ? C(0)
                    : static_cast<C>(upstream * RowStep<Row>::kScale) * terms.slope[k];
    coefficient[k] = V(c);
    zero = zero && c == 0;
  }
  if (zero) {
    row_zeros<Row, T, L>(out, args.columns, stream);
    return outcome;
  }
  if constexpr (!Row::Element::kVector) {
    if (std::isinf(params.p)) {  // ties for the extreme share its gradient
      C count[kSums];
      for (int k = 0; k < kSums; ++k) step.extreme[k] = V(sums[k]);
      step.counting = true;
      row_sums<Row, T, L>(params, step, x, args.columns, count);
      step.counting = false;
      for (int k = 0; k < kSums; ++k) step.share[k] = V(1 / count[k]);
    }
  }
  if (stream) {
    row_gradient<Row, T, L, true, true>(step, x, out, args.columns, coefficient);
  } else if (all) {
    row_gradient<Row, T, L, true, false>(step, x, out, args.columns, coefficient);
  } else {
    row_gradient<Row, T, L, false, false>(step, x, out, args.columns, coefficient);
  }
  return outcome;
}

struct BlocksKernel {
  using Result = int64_t;
  template <class F, class Row, class T>
  static int64_t run(const RowArgs& args, const typename F::Params& params, int64_t begin,
                     int64_t end) {
    using L = Lanes<T, typename math::Storage<T>::Compute, Row::Element::kVector>;
    constexpr int kInputs = Row::kInputs;
    bool gradient = false, all = true;
    for (int j = 0; j < kInputs; ++j) {
      gradient = gradient || args.gradient[j];
      all = all && args.gradient[j];
    }
    bool stream = args.stream && all && L::kCanStream && args.columns % L::kWidth == 0;
    for (int j = 0; j < kInputs; ++j) {
      stream = stream && reinterpret_cast<uintptr_t>(args.gradient[j]) % SIAM_VECTOR_BYTES == 0;
    }
    for (int64_t block = begin; block < end; ++block) {
      RowPartial partial{};
      const int64_t last = std::min(args.rows, (block + 1) * kBlockRows);
      for (int64_t row = block * kBlockRows; row < last; ++row) {
        const Label label = row_label<F>(args, row, PlainLoad());
        if (__builtin_expect(label == Label::kInvalid, 0)) return row;
        const T* x[kInputs];
        T* out[kInputs] = {};
        for (int j = 0; j < kInputs; ++j) {
          x[j] = static_cast<const T*>(args.input[j].data) +
                 row_offset(args.shape, args.input[j].strides, row);
          if (args.gradient[j]) out[j] = static_cast<T*>(args.gradient[j]) + row * args.columns;
        }
        const double upstream = gradient ? row_upstream(args, row, PlainLoad()) : 0.0;
        const RowOutcome outcome =
            do_row<F, Row, T, L>(args, params, x, out, label, upstream, gradient, all, stream);
        partial.sum += outcome.value;
        if (args.values) {
          write_value(args.value_dtype, args.values, row, outcome.value, PlainStore());
        }
        if (__builtin_expect(args.want_stats, 0)) {
          math::add_stats<kInputs>(partial.stats, label, outcome.value, outcome.distance,
                                   outcome.negative_distance, outcome.collapsed);
        }
      }
      if (args.partials) args.partials[block] = partial;
    }
    if (stream) finish_streaming();
    return -1;
  }
};

template <class F>
int64_t rows(const RowArgs& args, const typename F::Params& params, int64_t begin, int64_t end) {
  return run_for_row_and_dtype<BlocksKernel, F>(args, params, begin, end);
}

#define SIAM_INSTANTIATE(F) \
  template int64_t rows<F>(const RowArgs&, const typename F::Params&, int64_t, int64_t);
SIAM_FOR_EACH_LOSS(SIAM_INSTANTIATE)
#undef SIAM_INSTANTIATE
