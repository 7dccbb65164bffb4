// Every formula of math/formulas.h, found through SIAM_FOR_EACH_LOSS: its slopes against finite
// differences of its value, its second derivatives on dual numbers against finite differences of
// its slopes, and the gradient per element against finite differences of the whole row.
//
// Options are made from the formula itself: numbers from a short list and the schema's default,
// strings from the words that its own error message offers. A row that no set of options reaches
// fails the test, so a new loss is either covered or says that it is not.
#include "math/formulas.h"

#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "check.h"

namespace {

namespace math = siamcuda::math;
using math::Dual;
using math::magnitude;
using math::multiply_add;
using math::sign;
using siamcuda::Label;
#include "math/steps.inl"

// --- options -------------------------------------------------------------------------------------

// Values to try for option number `index` of a formula whose error messages are `refusals`.
template <class Option>
struct Candidates;
template <>
struct Candidates<double> {
  static std::vector<double> of(const std::vector<std::string>&) { return {0.35, 1.0, 2.0, 3.0}; }
};
template <>
struct Candidates<bool> {
  static std::vector<bool> of(const std::vector<std::string>&) { return {false, true}; }
};
template <>
struct Candidates<int64_t> {
  static std::vector<int64_t> of(const std::vector<std::string>&) { return {0, 1}; }
};
template <>
struct Candidates<std::string_view> {
  static const std::vector<std::string>& of(const std::vector<std::string>& words) { return words; }
};

template <class Option>
struct Probe {
  static Option value() { return Option(1); }
};
template <>
struct Probe<std::string_view> {
  static std::string_view value() { return "?"; }
};

// What stands in quotes in the message that refuses "?" for a string option.
template <class... Options, class Make>
std::vector<std::string> offered_words(Make make) {
  try {
    make(Probe<Options>::value()...);
  } catch (const std::invalid_argument& error) {
    std::vector<std::string> words;
    const std::string text = error.what();
    for (size_t at = text.find('\''); at != std::string::npos; at = text.find('\'', at)) {
      const size_t end = text.find('\'', at + 1);
      if (end == std::string::npos) break;
      const std::string word = text.substr(at + 1, end - at - 1);
      if (word != "?") words.push_back(word);
      at = end + 1;
    }
    return words;
  }
  return {};
}

template <class F, class Make = decltype(&F::make)>
struct OptionSets;
template <class F, class Params, class... O>
struct OptionSets<F, Params (*)(O...)> {
  static std::vector<Params> all() {
    const std::vector<std::string> words = offered_words<O...>(F::make);
    std::vector<Params> sets;
    extend(words, sets, std::tuple<>());
    return sets;
  }

 private:
  template <class... Chosen>
  static void extend(const std::vector<std::string>& words, std::vector<Params>& sets,
                     const std::tuple<Chosen...>& chosen) {
    if constexpr (sizeof...(Chosen) == sizeof...(O)) {
      try {
        sets.push_back(std::apply(F::make, chosen));
      } catch (const std::invalid_argument&) {  // one of them is not allowed
      }
    } else {
      using Next = std::tuple_element_t<sizeof...(Chosen), std::tuple<O...>>;
      for (const auto& value : Candidates<Next>::of(words)) {
        extend(words, sets, std::tuple_cat(chosen, std::tuple<Next>(value)));
      }
    }
  }
};

template <class F>
std::vector<Label> labels() {
  if (F::kHasTarget) return {Label::kGenuine, Label::kImpostor};
  return {Label::kGenuine};
}

// --- one row of one formula ----------------------------------------------------------------------

template <class Row>
constexpr bool kPositiveSums = !std::is_same<Row, math::Products>::value;

struct Counts {
  int compared = 0;
  int kinks = 0;
};

// True between points where the function bends, as a hinge does: nothing to compare with there.
inline bool bends(double before, double at, double after, double h) {
  const double left = (at - before) / h, right = (after - at) / h;
  return std::fabs(left - right) > 1e-3 * (1 + std::fabs(left) + std::fabs(right));
}

template <class F, class Row>
struct Checker {
  using Params = typename F::Params;
  static constexpr int kSums = Row::kSums, kInputs = Row::kInputs;
  template <class S>
  using Terms = math::Terms<S, kSums>;

  const Params& params;
  Label label;
  std::string where;
  Counts* counts;

  template <class S>
  Terms<S> evaluate(const S* sums) const {
    return F::template evaluate<Row>(params, sums, label);
  }

  Terms<double> moved(const double* sums, int k, double by) const {
    double other[kSums];
    for (int j = 0; j < kSums; ++j) other[j] = sums[j] + (j == k ? by : 0);
    return evaluate<double>(other);
  }

  void slopes(const double* sums) const {
    const Terms<double> at = evaluate<double>(sums);
    const Terms<double> again = evaluate<double>(sums);
    SIAM_EQUAL_AT(at.value, again.value, where);
    for (int m = 0; m < kSums; ++m) {
      const double h = 1e-5 * (1 + std::fabs(sums[m]));
      const Terms<double> before = moved(sums, m, -h), after = moved(sums, m, h);
      bool kink = bends(before.value, at.value, after.value, h);
      for (int k = 0; k < kSums; ++k) {
        kink = kink || bends(before.slope[k], at.slope[k], after.slope[k], h);
      }
      if (kink) {
        ++counts->kinks;
        continue;
      }
      ++counts->compared;
      const std::string here = where + ", sum " + std::to_string(m);
      SIAM_NEAR_AT(at.slope[m], (after.value - before.value) / (2 * h), 1e-6, here);

      Dual<double> dual[kSums];
      for (int j = 0; j < kSums; ++j) dual[j] = Dual<double>(sums[j], j == m ? 1.0 : 0.0);
      const Terms<Dual<double>> second = evaluate<Dual<double>>(dual);
      SIAM_NEAR_AT(second.value.value, at.value, 1e-14, here);
      SIAM_NEAR_AT(second.value.tangent, at.slope[m], 1e-12, here);
      for (int k = 0; k < kSums; ++k) {
        const double expected = (after.slope[k] - before.slope[k]) / (2 * h);
        SIAM_NEAR_AT(second.slope[k].value, at.slope[k], 1e-14, here);
        SIAM_NEAR_AT(second.slope[k].tangent, expected, 2e-5, here);
      }
    }
  }

  // Floats take the same way through the formula.
  void floats(const double* sums) const {
    float narrow[kSums];
    for (int k = 0; k < kSums; ++k) narrow[k] = static_cast<float>(sums[k]);
    const Terms<float> got = evaluate<float>(narrow);
    const Terms<double> exact = evaluate<double>(sums);
    SIAM_NEAR_AT(got.value, exact.value, 1e-4, where);
    for (int k = 0; k < kSums; ++k) SIAM_NEAR_AT(got.slope[k], exact.slope[k], 1e-3, where);
  }

  // Promise 1: nothing at distance 0 is NaN or infinite. Promise 2: NaN comes out where it went in.
  void extremes() const {
    double zero[kSums] = {};
    const Terms<double> flat = evaluate<double>(zero);
    SIAM_CHECK_AT(std::isfinite(flat.value), where);
    for (int k = 0; k < kSums; ++k) SIAM_CHECK_AT(std::isfinite(flat.slope[k]), where);
    Dual<double> dual[kSums];
    for (int k = 0; k < kSums; ++k) dual[k] = Dual<double>(0.0, 1.0);
    const Terms<Dual<double>> second = evaluate<Dual<double>>(dual);
    for (int k = 0; k < kSums; ++k) {
      SIAM_CHECK_AT(std::isfinite(second.slope[k].value), where);
      SIAM_CHECK_AT(std::isfinite(second.slope[k].tangent), where);
    }
    for (int m = 0; m < kSums; ++m) {
      double sums[kSums];
      for (int k = 0; k < kSums; ++k) sums[k] = k == m ? NAN : 1.0;
      SIAM_CHECK_AT(std::isnan(evaluate<double>(sums).value), where + ", sum " + std::to_string(m));
    }
  }

  // --- the whole row: elements to sums to value, and slopes to gradients ------------------------

  static constexpr int kColumns = 5;
  using Elements = double[kInputs][kColumns];

  StepContext<double> step() const {
    StepContext<double> context{};
    context.eps = params.eps;
    context.p = params.p;
    return context;
  }

  void sum(const Elements& x, double* sums) const {
    for (int k = 0; k < kSums; ++k) sums[k] = 0;
    for (int d = 0; d < kColumns; ++d) {
      double element[kInputs];
      for (int j = 0; j < kInputs; ++j) element[j] = x[j][d];
      RowStep<Row>::accumulate(step(), element, sums);
    }
  }

  Terms<double> row(const Elements& x) const {
    double sums[kSums];
    sum(x, sums);
    return evaluate<double>(sums);
  }

  void gradients(Elements& x) const {
    const Terms<double> at = row(x);
    double c[kSums];
    for (int k = 0; k < kSums; ++k) c[k] = RowStep<Row>::kScale * at.slope[k];
    for (int d = 0; d < kColumns; ++d) {
      double element[kInputs], gradient[kInputs];
      for (int j = 0; j < kInputs; ++j) element[j] = x[j][d];
      RowStep<Row>::gradient(step(), element, c, gradient);
      for (int j = 0; j < kInputs; ++j) {
        const double h = 1e-5;
        const double kept = x[j][d];
        x[j][d] = kept - h;
        const double before = row(x).value;
        x[j][d] = kept + h;
        const double after = row(x).value;
        x[j][d] = kept;
        if (bends(before, at.value, after, h)) {
          ++counts->kinks;
          continue;
        }
        ++counts->compared;
        SIAM_NEAR_AT(gradient[j], (after - before) / (2 * h), 1e-6,
                     where + ", input " + std::to_string(j) + ", column " + std::to_string(d));
      }
    }
  }
};

template <class F, class Row>
void check_row(const typename F::Params& params, int row, const std::string& options) {
  std::mt19937 random(17);
  std::uniform_real_distribution<double> size(0.05, 4.0), element(-1.5, 1.5);
  for (const Label label : labels<F>()) {
    Counts of_sums, of_elements;
    Checker<F, Row> checker{params, label,
                            std::string(" in ") + F::kName + ", row " + std::to_string(row) + ", " +
                                options + (label == Label::kImpostor ? ", impostor" : ""),
                            &of_sums};
    checker.extremes();
    for (int trial = 0; trial < 40; ++trial) {
      double sums[Row::kSums];
      for (double& sum : sums) sum = size(random);
      checker.slopes(sums);
      checker.floats(sums);
    }
    checker.counts = &of_elements;
    for (int trial = 0; trial < 10; ++trial) {
      typename Checker<F, Row>::Elements x;
      for (auto& input : x) {
        for (double& value : input) value = element(random);
      }
      checker.gradients(x);
    }
    // A formula that bends everywhere would slip through.
    SIAM_CHECK_AT(of_sums.compared > 10 * of_sums.kinks, checker.where);
    SIAM_CHECK_AT(of_elements.compared > 5 * of_elements.kinks, checker.where);
  }
}

template <class F, class... Rows>
void check_rows(math::RowList<Rows...>) {
  using Params = typename F::Params;
  using Check = void (*)(const Params&, int, const std::string&);
  const Check checks[] = {check_row<F, Rows>...};
  std::set<int> reached;
  const std::vector<Params> sets = OptionSets<F>::all();
  SIAM_CHECK(!sets.empty());
  for (size_t i = 0; i < sets.size(); ++i) {
    const int row = F::row(sets[i]);
    SIAM_CHECK(row >= 0 && row < static_cast<int>(sizeof...(Rows)));
    reached.insert(row);
    checks[row](sets[i], row, "option set " + std::to_string(i));
  }
  SIAM_EQUAL_AT(reached.size(), sizeof...(Rows),
                std::string(": options of ") + F::kName + " that reach every row");
}

template <class F>
void check_loss() {
  check_rows<F>(typename F::Rows{});
}

// One test a loss, named after it.
struct RegisterLosses {
  RegisterLosses() {
#define SIAM_REGISTER_LOSS(F) siamcuda::check::tests().push_back({F::kName, check_loss<F>});
    SIAM_FOR_EACH_LOSS(SIAM_REGISTER_LOSS)
#undef SIAM_REGISTER_LOSS
  }
};
const RegisterLosses register_losses;

}  // namespace

SIAM_TEST_MAIN()
