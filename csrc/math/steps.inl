// The inner steps: how elements are added to a row's sums and how slopes become gradients.
//
// Included inside a namespace, once per instruction set: a template takes its instruction set from
// where it is written, so SIMD code needs copies of its own. `V` is a SIMD vector, a float or
// double, or a dual number; it has + - * and the functions multiply_add, magnitude and sign.
// The roles, for a row over inputs x[0..kInputs):
//   accumulate(step, x, sums)     adds V's elements to each sum
//   gradient(step, x, c, g)       g[j] = Σ_k c[k] · basis_k(x), where d sum_k / d x_j is kScale
//                                 times that basis
// and for an element, of one difference δ that belongs to sum k:
//   add(step, k, sum, δ)          the sum with δ's share added
//   basis(step, k, δ)             the direction of the share's derivative, without kScale

// What the steps need besides the elements. Only PowerDifference looks past eps.
template <class V>
struct StepContext {
  V eps;
  double p = 2;
  bool counting = false;              // add() counts the elements that are the row's extreme
  V extreme[3] = {V(0), V(0), V(0)};  // p = ±inf: the extreme of each sum,
  V share[3] = {V(1), V(1), V(1)};    // and one over how many elements reach it

  // Written out: one that the compiler makes has the baseline instruction set, and calls V's own.
  SIAM_HOST_DEVICE StepContext() {}
};

template <class Element>
struct ElementStep;

template <>
struct ElementStep<math::SquaredDifference> {
  static constexpr int kScale = 2;
  template <class V>
  SIAM_HOST_DEVICE static V add(const StepContext<V>&, int, V sum, V delta) {
    return multiply_add(delta, delta, sum);
  }
  template <class V>
  SIAM_HOST_DEVICE static V basis(const StepContext<V>&, int, V delta) {
    return delta;
  }
};

template <>
struct ElementStep<math::AbsoluteDifference> {
  static constexpr int kScale = 1;
  template <class V>
  SIAM_HOST_DEVICE static V add(const StepContext<V>&, int, V sum, V delta) {
    return sum + magnitude(delta);
  }
  template <class V>
  SIAM_HOST_DEVICE static V basis(const StepContext<V>&, int, V delta) {
    return sign(delta);
  }
};

// |δ|^p in scalars, since nothing but torch's general p asks for it.
template <>
struct ElementStep<math::PowerDifference> {
  static constexpr int kScale = 1;
  template <class S>
  SIAM_HOST_DEVICE static S add(const StepContext<S>& step, int k, S sum, S delta) {
    using R = math::Real<S>;
    const R p = static_cast<R>(step.p);
    const S size = magnitude(delta);
    if (step.counting) return sum + S(R(math::real(size) == math::real(step.extreme[k]) ? 1 : 0));
    if (p == 0) return sum + S(R(math::real(size) != 0 ? 1 : 0));
    if (p - p != 0) return extreme(p, sum, size);
    if (math::real(size) == 0) return sum + S(math::pow(R(0), p));
    return sum + math::pow(size, p);
  }
  template <class S>
  SIAM_HOST_DEVICE static S basis(const StepContext<S>& step, int k, S delta) {
    using R = math::Real<S>;
    const R p = static_cast<R>(step.p);
    const S size = magnitude(delta);
    if (math::real(size) == 0) return S(R(0));
    if (p - p != 0) {
      return math::real(size) == math::real(step.extreme[k]) ? sign(delta) * step.share[k]
                                                             : S(R(0));
    }
    return sign(delta) * S(p) * math::pow(size, p - 1);
  }
  // The larger for p = inf, the smaller for p = -inf; NaN wins either way.
  template <class R, class S>
  SIAM_HOST_DEVICE static S extreme(R p, S a, S b) {
    if (math::real(a) != math::real(a)) return a;
    return (p > 0 ? math::real(b) <= math::real(a) : math::real(b) >= math::real(a)) ? a : b;
  }
};

template <class Element>
struct ElementStep<math::Shifted<Element>> : ElementStep<Element> {};

template <class Element, class V>
SIAM_HOST_DEVICE V difference(V eps, V a, V b) {
  if constexpr (Element::kShifted) {
    return (a - b) + eps;
  } else {
    return a - b;
  }
}

template <class Row>
struct RowStep;

template <class E>
struct RowStep<math::Pair<E>> {
  using Step = ElementStep<E>;
  static constexpr int kScale = Step::kScale;
  template <class V>
  SIAM_HOST_DEVICE static void accumulate(const StepContext<V>& step, const V* x, V* sums) {
    sums[0] = Step::add(step, 0, sums[0], difference<E>(step.eps, x[0], x[1]));
  }
  template <class V>
  SIAM_HOST_DEVICE static void gradient(const StepContext<V>& step, const V* x, const V* c, V* g) {
    g[0] = c[0] * Step::basis(step, 0, difference<E>(step.eps, x[0], x[1]));
    g[1] = -g[0];
  }
};

template <class E>
struct RowStep<math::Triplet<E>> {
  using Step = ElementStep<E>;
  static constexpr int kScale = Step::kScale;
  template <class V>
  SIAM_HOST_DEVICE static void accumulate(const StepContext<V>& step, const V* x, V* sums) {
    sums[0] = Step::add(step, 0, sums[0], difference<E>(step.eps, x[0], x[1]));
    sums[1] = Step::add(step, 1, sums[1], difference<E>(step.eps, x[0], x[2]));
  }
  template <class V>
  SIAM_HOST_DEVICE static void gradient(const StepContext<V>& step, const V* x, const V* c, V* g) {
    const V positive = c[0] * Step::basis(step, 0, difference<E>(step.eps, x[0], x[1]));
    const V negative = c[1] * Step::basis(step, 1, difference<E>(step.eps, x[0], x[2]));
    g[0] = positive + negative;
    g[1] = -positive;
    g[2] = -negative;
  }
};

template <class E>
struct RowStep<math::TripletSwap<E>> {
  using Step = ElementStep<E>;
  static constexpr int kScale = Step::kScale;
  template <class V>
  SIAM_HOST_DEVICE static void accumulate(const StepContext<V>& step, const V* x, V* sums) {
    sums[0] = Step::add(step, 0, sums[0], difference<E>(step.eps, x[0], x[1]));
    sums[1] = Step::add(step, 1, sums[1], difference<E>(step.eps, x[0], x[2]));
    sums[2] = Step::add(step, 2, sums[2], difference<E>(step.eps, x[1], x[2]));
  }
  template <class V>
  SIAM_HOST_DEVICE static void gradient(const StepContext<V>& step, const V* x, const V* c, V* g) {
    const V positive = c[0] * Step::basis(step, 0, difference<E>(step.eps, x[0], x[1]));
    const V negative = c[1] * Step::basis(step, 1, difference<E>(step.eps, x[0], x[2]));
    const V swapped = c[2] * Step::basis(step, 2, difference<E>(step.eps, x[1], x[2]));
    g[0] = positive + negative;
    g[1] = swapped - positive;
    g[2] = -(negative + swapped);
  }
};

template <>
struct RowStep<math::Products> {
  static constexpr int kScale = 1;
  template <class V>
  SIAM_HOST_DEVICE static void accumulate(const StepContext<V>&, const V* x, V* sums) {
    sums[0] = multiply_add(x[0], x[1], sums[0]);
    sums[1] = multiply_add(x[0], x[0], sums[1]);
    sums[2] = multiply_add(x[1], x[1], sums[2]);
  }
  template <class V>
  SIAM_HOST_DEVICE static void gradient(const StepContext<V>&, const V* x, const V* c, V* g) {
    g[0] = multiply_add(c[0], x[1], (c[1] + c[1]) * x[0]);
    g[1] = multiply_add(c[0], x[0], (c[2] + c[2]) * x[1]);
  }
};
