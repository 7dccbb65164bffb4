// Every paired loss, once: how the sums over a row's elements become a value and its slopes.
//
// A *row* (see the tags below and math/steps.inl) says which sums are taken over the D elements of
// each row and how a slope per sum becomes a gradient per element. A *formula* says, per row, what
// the loss is: `evaluate` maps the sums to {value, d value / d sum}. The same text is compiled for
// scalar, AVX2 and AVX-512 C++, for CUDA, for the emulator, and on dual numbers for double
// backward.
//
// To add a loss: write its struct here and name it in SIAM_FOR_EACH_LOSS at the end. Schemas, CPU
// and CUDA kernels, autograd, autocast and fake tensors are made from that list. See
// docs/adding_a_loss.md; docs/math.md derives each slope.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include "math/numerics.h"
#include "math/params.h"

namespace siamcuda::math {

// --- elements: what is summed over a row --------------------------------------------------------

// Options that reach the elements. eps is added to each difference, p is the order of
// PowerDifference.
struct StepParams {
  double eps = 0;
  double p = 2;
};

// A distance made from a sum, and its slope. The slope at distance 0 is 0 by promise: nothing can
// say in which direction to separate two equal points.
template <class S>
struct Root {
  S distance;
  S slope;
};

template <class S>
SIAM_HOST_DEVICE Root<S> square_root(S sum) {
  if (real(sum) == 0) return {S(Real<S>(0)), S(Real<S>(0))};
  const S root = sqrt(sum);
  return {root, S(Real<S>(0.5)) / root};
}

#if defined(__CUDA_ARCH__)
// Within 2 ulp and without a branch or a call, so that the roots of neighbours are under way
// together: the hardware's estimate of 1/√sum and a Newton step for either result.
__device__ inline Root<float> square_root(float sum) {
  float estimate;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(estimate) : "f"(sum));
  const float half = 0.5f * estimate, root = sum * estimate;
  const float error = __fmaf_rn(-root, estimate, 1.0f);
  const bool extreme = !(sum > 0 && sum < __int_as_float(0x7f800000));
  // 0, inf and NaN are their own roots; the slope is 0, but for NaN.
  return {extreme ? sum : __fmaf_rn(half, __fmaf_rn(-root, root, sum), root),
          extreme ? (sum == sum ? 0.0f : sum) : __fmaf_rn(half, 0.5f * error, half)};
}
#endif

struct SquaredDifference {  // Σ δ²
  static constexpr bool kShifted = false;
  static constexpr bool kSquares = true;  // float sums may under- or overflow: see needs_rescue
  static constexpr bool kVector = true;   // has a SIMD form
  template <class S>
  SIAM_HOST_DEVICE static Root<S> root(const StepParams&, S sum) {
    return square_root(sum);
  }
};

struct AbsoluteDifference {  // Σ |δ|
  static constexpr bool kShifted = false;
  static constexpr bool kSquares = false;
  static constexpr bool kVector = true;
  template <class S>
  SIAM_HOST_DEVICE static Root<S> root(const StepParams&, S sum) {
    return {sum, S(Real<S>(1))};
  }
};

struct PowerDifference {  // Σ |δ|^p; p = 0 counts the non-zero, p = ±inf takes the extreme
  static constexpr bool kShifted = true;
  static constexpr bool kSquares = false;
  static constexpr bool kVector = false;
  template <class S>
  SIAM_HOST_DEVICE static Root<S> root(const StepParams& step, S sum) {
    using R = Real<S>;
    const R p = static_cast<R>(step.p);
    if (p == 0) return {sum, S(R(0))};
    if (p - p != 0) return {sum, S(R(1))};
    if (real(sum) == 0) return {S(pow(real(sum), 1 / p)), S(R(0))};
    const S distance = pow(sum, 1 / p);
    return {distance, S(1 / p) * (distance / sum)};
  }
};

// δ + eps, as torch's pairwise distance has it.
template <class Element>
struct Shifted : Element {
  static constexpr bool kShifted = true;
};

// --- rows: which tensors meet --------------------------------------------------------------------

template <class E>
struct Pair {  // sums: over (x1 − x2)
  using Element = E;
  static constexpr int kInputs = 2, kSums = 1;
};
template <class E>
struct Triplet {  // sums: over (a − p), (a − n)
  using Element = E;
  static constexpr int kInputs = 3, kSums = 2;
};
template <class E>
struct TripletSwap {  // sums: over (a − p), (a − n), (p − n)
  using Element = E;
  static constexpr int kInputs = 3, kSums = 3;
};
struct Products {  // sums: x1·x2, x1·x1, x2·x2
  using Element = SquaredDifference;
  static constexpr int kInputs = 2, kSums = 3;
};

template <class... Rows>
struct RowList {};

// --- formulas --------------------------------------------------------------------------------

template <class S, int K>
struct Terms {
  S value;
  S slope[K];  // d value / d sum
};

[[noreturn]] inline void invalid(const std::string& message) {
  throw std::invalid_argument(message);
}

inline std::string show(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", x);
  return text;
}

inline double finite(const char* name, double x) {
  if (!std::isfinite(x)) invalid(std::string(name) + " must be a finite number, got " + show(x));
  return x;
}

inline double finite_non_negative(const char* name, double x) {
  if (finite(name, x) < 0) invalid(std::string(name) + " must be at least 0, got " + show(x));
  return x;
}

inline int32_t label_option(int64_t similar_label) {
  if (similar_label != 0 && similar_label != 1) {
    invalid("similar_label must be 0 or 1, got " + std::to_string(similar_label));
  }
  return static_cast<int32_t>(similar_label);
}

template <class S>
struct Distances {
  S first;   // of the pair, or from anchor to positive
  S second;  // from anchor to negative
};

// Every formula has these; what a formula does not say it takes from here.
struct Formula {
  // The distances that the loss speaks of, for return_stats.
  template <class Row, class Params, class S>
  SIAM_HOST_DEVICE static Distances<S> distances(const Params& params, const S* sums) {
    return {Row::Element::root(params, sums[0]).distance,
            Row::Element::root(params, sums[Row::kSums == 1 ? 0 : 1]).distance};
  }

  static constexpr bool kHasTarget = false;
  static constexpr bool kIsLoss = true;  // reduced to a mean by default, and has statistics
  static constexpr bool kEmptyMeanIsNaN = false;
  static constexpr bool kEqualRanks = false;  // refuse to broadcast a missing dimension
  struct Params : StepParams {
    int32_t similar_label = 0;
  };
  template <class Params>
  static int row(const Params&) {
    return 0;
  }
};

// Σ(x1 − x2)²
struct SquaredL2 : Formula {
  static constexpr const char* kName = "squared_l2";
  static constexpr const char* kTensors = "Tensor x1, Tensor x2";
  static constexpr const char* kOptions = "";
  static constexpr bool kIsLoss = false;
  using Rows = RowList<Pair<SquaredDifference>>;

  static Params make() { return {}; }

  template <class Row, class S>
  SIAM_HOST_DEVICE static Terms<S, 1> evaluate(const Params&, const S* sums, Label) {
    return {sums[0], {S(Real<S>(1))}};
  }
};

// x1·x2 / (‖x1‖‖x2‖), 0 for a zero vector
struct CosineSimilarity : Formula {
  static constexpr const char* kName = "cosine_similarity";
  static constexpr const char* kTensors = "Tensor x1, Tensor x2";
  static constexpr const char* kOptions = "";
  static constexpr bool kIsLoss = false;
  using Rows = RowList<Products>;

  static Params make() { return {}; }

  template <class Row, class S>
  SIAM_HOST_DEVICE static Terms<S, 3> evaluate(const Params&, const S* sums, Label) {
    using R = Real<S>;
    const S zero = S(R(0));
    // A zero vector against NaN has a NaN product, which must be seen.
    if ((real(sums[1]) == 0 || real(sums[2]) == 0) && real(sums[0]) == real(sums[0])) {
      return {zero, {zero, zero, zero}};
    }
    const S inverse = S(R(1)) / (sqrt(sums[1]) * sqrt(sums[2]));
    const S value = sums[0] * inverse;
    return {value, {inverse, S(R(-0.5)) * (value / sums[1]), S(R(-0.5)) * (value / sums[2])}};
  }
};

// (1−y)·D² + y·max(0, m−D)², D = ‖x1−x2‖₂ (Hadsell, Chopra, LeCun 2006, without the ½)
struct ContrastiveLoss : Formula {
  static constexpr const char* kName = "contrastive_loss";
  static constexpr const char* kTensors = "Tensor x1, Tensor x2";
  static constexpr bool kHasTarget = true;
  static constexpr const char* kOptions = "float margin=1.0, int similar_label=0";
  using Rows = RowList<Pair<SquaredDifference>>;
  struct Params : Formula::Params {
    double margin;
  };

  static Params make(double margin, int64_t similar_label) {
    Params params;
    params.margin = finite_non_negative("margin", margin);
    params.similar_label = label_option(similar_label);
    return params;
  }

  template <class Row, class S>
  SIAM_HOST_DEVICE static Terms<S, 1> evaluate(const Params& params, const S* sums, Label label) {
    using R = Real<S>;
    if (label == Label::kGenuine) return {sums[0], {S(R(1))}};
    const Root<S> d = Row::Element::root(params, sums[0]);
    const S hinge = S(static_cast<R>(params.margin)) - d.distance;
    if (real(hinge) <= 0) return {S(R(0)), {S(R(0))}};
    return {hinge * hinge, {S(R(-2)) * hinge * d.slope}};
  }
};

// (1−y)·(2/Q)·E² + y·2Q·exp(−2.77·E/Q), E = ‖x1−x2‖₁ or ₂ (Chopra, Hadsell, LeCun 2005)
struct ChopraLoss : Formula {
  static constexpr const char* kName = "chopra_loss";
  static constexpr const char* kTensors = "Tensor x1, Tensor x2";
  static constexpr bool kHasTarget = true;
  static constexpr const char* kOptions = "float q=2.0, str energy=\"l2\", int similar_label=0";
  using Rows = RowList<Pair<SquaredDifference>, Pair<AbsoluteDifference>>;
  struct Params : Formula::Params {
    double q;
    bool l1;
  };
  static constexpr double kDecay = 2.77;

  static Params make(double q, std::string_view energy, int64_t similar_label) {
    Params params;
    if (!(finite("q", q) > 0)) invalid("q must be greater than 0, got " + show(q));
    if (energy != "l1" && energy != "l2") {
      invalid("energy must be 'l1' or 'l2', got '" + std::string(energy) + "'");
    }
    params.q = q;
    params.l1 = energy == "l1";
    params.similar_label = label_option(similar_label);
    return params;
  }
  static int row(const Params& params) { return params.l1 ? 1 : 0; }

  template <class Row, class S>
  SIAM_HOST_DEVICE static Terms<S, 1> evaluate(const Params& params, const S* sums, Label label) {
    using R = Real<S>;
    const R q = static_cast<R>(params.q);
    if (label == Label::kGenuine) {
      if (Row::Element::kSquares) return {S(2 / q) * sums[0], {S(2 / q)}};
      return {S(2 / q) * (sums[0] * sums[0]), {S(4 / q) * sums[0]}};
    }
    const Root<S> e = Row::Element::root(params, sums[0]);
    const S decay = exp(S(R(-kDecay) / q) * e.distance);
    return {S(2 * q) * decay, {S(R(-2 * kDecay)) * decay * e.slope}};
  }
};

// max(0, d(a,p) − d(a,n) + α), d squared L2 (FaceNet, Schroff 2015) or L2;
// soft: softplus(d(a,p) − d(a,n)) (Hermans 2017)
struct TripletLoss : Formula {
  static constexpr const char* kName = "triplet_loss";
  static constexpr const char* kTensors = "Tensor anchor, Tensor positive, Tensor negative";
  static constexpr const char* kOptions = "float margin=0.2, bool squared=True, bool soft=False";
  using Rows = RowList<Triplet<SquaredDifference>>;
  struct Params : Formula::Params {
    double margin;
    bool squared;
    bool soft;
  };

  static Params make(double margin, bool squared, bool soft) {
    Params params;
    params.margin = finite_non_negative("margin", margin);
    params.squared = squared;
    params.soft = soft;
    return params;
  }

  template <class Row, class P, class S>
  SIAM_HOST_DEVICE static Distances<S> distances(const P& params, const S* sums) {
    if (params.squared) return {sums[0], sums[1]};
    return Formula::distances<Row>(params, sums);
  }

  template <class Row, class S>
  SIAM_HOST_DEVICE static Terms<S, 2> evaluate(const Params& params, const S* sums, Label) {
    using R = Real<S>;
    const S one = S(R(1));
    Root<S> positive{sums[0], one}, negative{sums[1], one};
    if (!params.squared) {
      positive = Row::Element::root(params, sums[0]);
      negative = Row::Element::root(params, sums[1]);
    }
    if (params.soft) {
      const S x = positive.distance - negative.distance;
      const S e = exp(real(x) < 0 ? x : -x);
      const S sigmoid = (real(x) < 0 ? e : one) / (one + e);
      const S value = real(x) < 0 ? log1p_unit(e) : x + log1p_unit(e);
      return {value, {sigmoid * positive.slope, -(sigmoid * negative.slope)}};
    }
    const S value = (positive.distance + S(static_cast<R>(params.margin))) - negative.distance;
    if (real(value) <= 0) return {S(R(0)), {S(R(0)), S(R(0))}};
    return {value, {positive.slope, -negative.slope}};
  }
};

// torch.nn.functional.triplet_margin_loss in everything: eps inside the difference, ties of swap
// shared, NaN for the mean of nothing (Balntas 2016)
struct TripletMarginLoss : Formula {
  static constexpr const char* kName = "triplet_margin_loss";
  static constexpr const char* kTensors = "Tensor anchor, Tensor positive, Tensor negative";
  static constexpr const char* kOptions =
      "float margin=1.0, float p=2.0, float eps=1e-06, bool swap=False";
  static constexpr bool kEmptyMeanIsNaN = true;
  static constexpr bool kEqualRanks = true;
  using Rows = RowList<Triplet<Shifted<SquaredDifference>>, Triplet<Shifted<AbsoluteDifference>>,
                       Triplet<PowerDifference>, TripletSwap<Shifted<SquaredDifference>>,
                       TripletSwap<Shifted<AbsoluteDifference>>, TripletSwap<PowerDifference>>;
  struct Params : Formula::Params {
    double margin;
    bool swap;
  };

  static Params make(double margin, double p, double eps, bool swap) {
    Params params;
    if (!(finite("margin", margin) > 0)) {
      invalid("margin must be greater than 0, got " + show(margin));
    }
    if (std::isnan(p)) invalid("p must be a number, got nan");
    params.margin = margin;
    params.p = p;
    params.eps = finite("eps", eps);
    params.swap = swap;
    return params;
  }
  static int row(const Params& params) {
    return (params.p == 2 ? 0 : params.p == 1 ? 1 : 2) + (params.swap ? 3 : 0);
  }

  template <class Row, class S>
  SIAM_HOST_DEVICE static Terms<S, Row::kSums> evaluate(const Params& params, const S* sums,
                                                        Label) {
    using R = Real<S>;
    const Root<S> positive = Row::Element::root(params, sums[0]);
    const Root<S> negative = Row::Element::root(params, sums[1]);
    S nearest = negative.distance;
    R share = 1;  // of the negative's own distance in the nearest one
    Root<S> swapped{S(R(0)), S(R(0))};
    if constexpr (Row::kSums == 3) {
      swapped = Row::Element::root(params, sums[2]);
      const R own = real(negative.distance), other = real(swapped.distance);
      if (other < own || other != other) nearest = swapped.distance;
      share = own < other ? R(1) : own == other ? R(0.5) : R(0);
      if (own != own) share = 1;
      if (own == other) nearest = S(R(0.5)) * (negative.distance + swapped.distance);
    }
    Terms<S, Row::kSums> terms;
    const S value = (S(static_cast<R>(params.margin)) + positive.distance) - nearest;
    const bool inactive = real(value) <= 0;
    terms.value = inactive ? S(R(0)) : value;
    terms.slope[0] = inactive ? S(R(0)) : positive.slope;
    terms.slope[1] = inactive ? S(R(0)) : -(S(share) * negative.slope);
    if constexpr (Row::kSums == 3) {
      terms.slope[2] = inactive ? S(R(0)) : -(S(1 - share) * swapped.slope);
    }
    return terms;
  }
};

}  // namespace siamcuda::math

// The list of losses: everything that exists once per loss is made from it.
#define SIAM_FOR_EACH_LOSS(X)           \
  X(::siamcuda::math::SquaredL2)        \
  X(::siamcuda::math::CosineSimilarity) \
  X(::siamcuda::math::ContrastiveLoss)  \
  X(::siamcuda::math::ChopraLoss)       \
  X(::siamcuda::math::TripletLoss)      \
  X(::siamcuda::math::TripletMarginLoss)
