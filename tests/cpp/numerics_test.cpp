// The 16-bit conversions of math/numerics.h against what the formats say, over every value of them;
// and dual numbers against finite differences.
//
// The independent side of the conversions knows no bit trick: a half is (-1)^s · 1.m · 2^(e-15) by
// std::ldexp, and rounding is a search among all finite values for the nearest, ties to the even
// one. Rounding is monotone, so being right at each midpoint and on both sides of it is being right
// everywhere between; a stride over all floats makes sure.
#include "math/numerics.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"

namespace {

namespace math = siamcuda::math;
using math::bit_cast;
using math::Dual;

struct Format {
  int exponent_bits, mantissa_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int special() const { return (1 << exponent_bits) - 1; }
  uint16_t infinity() const { return static_cast<uint16_t>(special() << mantissa_bits); }
  bool is_nan(uint16_t bits) const { return (bits & 0x7fff) > infinity(); }

  double value(uint16_t bits) const {
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const int exponent = (bits >> mantissa_bits) & special();
    const double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == special()) return mantissa ? NAN : sign * INFINITY;
    const double fraction = std::ldexp(mantissa, -mantissa_bits) + (exponent > 0 ? 1.0 : 0.0);
    return sign * std::ldexp(fraction, std::max(exponent, 1) - bias());
  }

  // The first value that no finite one may stand for: half a step above the largest.
  double overflow() const {
    const double largest = value(static_cast<uint16_t>(infinity() - 1));
    return largest + (largest - value(static_cast<uint16_t>(infinity() - 2))) / 2;
  }

  uint16_t nearest(double x) const {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const double size = std::fabs(x);
    if (size >= overflow()) return sign | infinity();
    // Bits of non-negative values ascend with the values.
    uint16_t low = 0, high = static_cast<uint16_t>(infinity() - 1);
    while (low < high) {
      const uint16_t middle = static_cast<uint16_t>((low + high + 1) / 2);
      if (value(middle) <= size) {
        low = middle;
      } else {
        high = static_cast<uint16_t>(middle - 1);
      }
    }
    if (low + 1 < infinity()) {
      const double below = size - value(low), above = value(static_cast<uint16_t>(low + 1)) - size;
      if (above < below || (above == below && low % 2 == 1)) ++low;
    }
    return sign | low;
  }
};

constexpr Format kHalf{5, 10}, kBFloat16{8, 7};

template <class Widen>
void widens_every_value(const Format& format, Widen widen) {
  for (int i = 0; i < 1 << 16; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    const float got = widen(bits);
    const std::string where = " at " + std::to_string(i);
    SIAM_NEAR_AT(got, format.value(bits), 0.0, where);
    SIAM_EQUAL_AT(std::signbit(got), bits >> 15 == 1, where);
  }
}

template <class Widen, class Narrow>
void returns_every_value(const Format& format, Widen widen, Narrow narrow) {
  for (int i = 0; i < 1 << 16; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    const uint16_t back = narrow(widen(bits));
    if (format.is_nan(bits)) {
      SIAM_CHECK_AT(format.is_nan(back), " at " + std::to_string(i));
      SIAM_EQUAL(back >> 15, bits >> 15);
    } else {
      SIAM_EQUAL_AT(back, bits, " at " + std::to_string(i));
    }
  }
}

template <class Narrow>
void rounds_at_every_midpoint(const Format& format, Narrow narrow) {
  for (uint16_t low = 0; low + 1 < format.infinity(); ++low) {
    const uint16_t high = static_cast<uint16_t>(low + 1);
    // Exact in double, and in float as both formats have at least two bits less.
    const double exact = (format.value(low) + format.value(high)) / 2;
    const float middle = static_cast<float>(exact);
    SIAM_EQUAL(static_cast<double>(middle), exact);
    const std::string where = " between " + std::to_string(low) + " and the next";
    SIAM_EQUAL_AT(narrow(middle), low % 2 == 0 ? low : high, where);
    SIAM_EQUAL_AT(narrow(std::nextafter(middle, 0.0f)), low, where);
    SIAM_EQUAL_AT(narrow(std::nextafter(middle, INFINITY)), high, where);
    SIAM_EQUAL_AT(narrow(-middle), (low % 2 == 0 ? low : high) | 0x8000, where);
  }
}

template <class Narrow>
void overflows_where_it_must(const Format& format, Narrow narrow) {
  const float limit = static_cast<float>(format.overflow());
  SIAM_EQUAL(narrow(std::nextafter(limit, 0.0f)), static_cast<uint16_t>(format.infinity() - 1));
  for (const float x : {limit, std::numeric_limits<float>::max(), INFINITY}) {
    SIAM_EQUAL(narrow(x), format.infinity());
    SIAM_EQUAL(narrow(-x), format.infinity() | 0x8000);
  }
  for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    SIAM_CHECK_AT(format.is_nan(narrow(bit_cast<float>(bits))), " at " + std::to_string(bits));
  }
}

template <class Narrow>
void rounds_a_stride_of_floats(const Format& format, Narrow narrow) {
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 9973) {
    const float x = bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isnan(x)) continue;
    SIAM_EQUAL_AT(narrow(x), format.nearest(x), " at " + std::to_string(bits));
  }
}

SIAM_TEST(half_widens_every_value) { widens_every_value(kHalf, math::half_to_float); }
SIAM_TEST(half_returns_every_value) {
  returns_every_value(kHalf, math::half_to_float, math::float_to_half);
}
SIAM_TEST(half_rounds_at_every_midpoint) { rounds_at_every_midpoint(kHalf, math::float_to_half); }
SIAM_TEST(half_overflows_where_it_must) { overflows_where_it_must(kHalf, math::float_to_half); }
SIAM_TEST(half_rounds_a_stride_of_floats) { rounds_a_stride_of_floats(kHalf, math::float_to_half); }

SIAM_TEST(bfloat16_widens_every_value) { widens_every_value(kBFloat16, math::bfloat16_to_float); }
SIAM_TEST(bfloat16_returns_every_value) {
  returns_every_value(kBFloat16, math::bfloat16_to_float, math::float_to_bfloat16);
}
SIAM_TEST(bfloat16_rounds_at_every_midpoint) {
  rounds_at_every_midpoint(kBFloat16, math::float_to_bfloat16);
}
SIAM_TEST(bfloat16_overflows_where_it_must) {
  overflows_where_it_must(kBFloat16, math::float_to_bfloat16);
}
SIAM_TEST(bfloat16_rounds_a_stride_of_floats) {
  rounds_a_stride_of_floats(kBFloat16, math::float_to_bfloat16);
}

// --- functions of formulas
// -------------------------------------------------------------------------

// |got − expected| in units of the last place of expected.
template <class T>
double ulps(T got, long double expected) {
  const T near = static_cast<T>(expected);
  const long double unit = std::max<long double>(
      std::nextafter(near, std::numeric_limits<T>::infinity()) - static_cast<long double>(near),
      std::numeric_limits<T>::denorm_min());
  return static_cast<double>(std::fabs(got - expected) / unit);
}

template <class T>
void functions_are_within_two_ulp(double lowest, double highest) {
  double worst_exp = 0, worst_log = 0;
  for (int i = 0; i <= 200000; ++i) {
    const T x = static_cast<T>(lowest + (highest - lowest) * i / 200000);
    worst_exp = std::max(worst_exp, ulps(math::exp(x), std::exp(static_cast<long double>(x))));
    const T y = static_cast<T>(i / 200000.0);
    worst_log =
        std::max(worst_log, ulps(math::log1p_unit(y), std::log1p(static_cast<long double>(y))));
  }
  SIAM_CHECK(worst_exp < 2);
  SIAM_CHECK(worst_log < 2);
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  SIAM_CHECK(math::exp(-kInfinity) == 0);
  SIAM_CHECK(math::exp(kInfinity) == kInfinity);
  SIAM_CHECK(std::isnan(math::exp(std::numeric_limits<T>::quiet_NaN())));
  SIAM_CHECK(std::isnan(math::log1p_unit(std::numeric_limits<T>::quiet_NaN())));
  SIAM_CHECK(math::exp(T(0)) == 1);
}

SIAM_TEST(functions_of_float) { functions_are_within_two_ulp<float>(-103, 88.7); }
SIAM_TEST(functions_of_double) { functions_are_within_two_ulp<double>(-744, 709.7); }

// --- dual numbers --------------------------------------------------------------------------------

// d f(x + t·v) / dt at 0, for f of two variables, against the tangent of f on duals.
template <class Function>
void tangent_is_the_derivative(const char* name, Function f) {
  for (const double x : {0.3, 1.7, -0.8, 12.0}) {
    for (const double y : {0.6, -2.5, 3.25}) {
      const double u = 0.7, v = -1.3, h = 1e-6;
      const auto at = [&](double t) { return f(x + t * u, y + t * v); };
      const double expected = (at(h) - at(-h)) / (2 * h);
      if (std::isnan(expected)) continue;  // outside the function's domain
      const Dual<double> got = f(Dual<double>(x, u), Dual<double>(y, v));
      const std::string where =
          std::string(" of ") + name + " at " + std::to_string(x) + ", " + std::to_string(y);
      SIAM_NEAR_AT(got.value, at(0), 1e-15, where);
      SIAM_NEAR_AT(got.tangent, expected, 1e-7, where);
      const Dual<float> narrow = f(Dual<float>(static_cast<float>(x), static_cast<float>(u)),
                                   Dual<float>(static_cast<float>(y), static_cast<float>(v)));
      SIAM_NEAR_AT(narrow.tangent, expected, 1e-4, where);
    }
  }
}

template <class S>
math::Real<S> constant(double x) {
  return static_cast<math::Real<S>>(x);
}

#define SIAM_DUAL_TEST(name, expression)                                                    \
  SIAM_TEST(name) {                                                                         \
    tangent_is_the_derivative(#name, []([[maybe_unused]] auto x, [[maybe_unused]] auto y) { \
      using S [[maybe_unused]] = decltype(x);                                               \
      return expression;                                                                    \
    });                                                                                     \
  }

SIAM_DUAL_TEST(dual_plus, x + y)
SIAM_DUAL_TEST(dual_minus, x - y)
SIAM_DUAL_TEST(dual_negation, -x)
SIAM_DUAL_TEST(dual_product, (x * y))
SIAM_DUAL_TEST(dual_quotient, x / y)
SIAM_DUAL_TEST(dual_chain, (x * y + x) / (y * y))
SIAM_DUAL_TEST(dual_sqrt, math::sqrt(x))
SIAM_DUAL_TEST(dual_exp, math::exp(x* S(constant<S>(0.25))))
// For 0 to 1 alone, which is where exp(-|x|) lies.
SIAM_DUAL_TEST(dual_log1p_unit, math::log1p_unit(math::exp(-math::abs(x))))
SIAM_DUAL_TEST(dual_pow, math::pow(x, constant<S>(1.7)))
SIAM_DUAL_TEST(dual_abs, math::abs(x))
SIAM_DUAL_TEST(dual_multiply_add, math::multiply_add(x, y, x))
SIAM_DUAL_TEST(dual_magnitude, math::magnitude(x - y))

SIAM_TEST(dual_constants_have_no_tangent) {
  const Dual<double> x(2.0, 1.0), c(3.0);
  SIAM_EQUAL(c.tangent, 0.0);
  SIAM_EQUAL((x * c).tangent, 3.0);
  SIAM_EQUAL(math::sign(Dual<double>(-4.0, 5.0)).value, -1.0);
  SIAM_EQUAL(math::sign(Dual<double>(-4.0, 5.0)).tangent, 0.0);
  SIAM_EQUAL(math::abs(Dual<double>(0.0, 5.0)).tangent, 0.0);
}

}  // namespace

SIAM_TEST_MAIN()
