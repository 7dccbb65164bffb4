// Numbers that every backend shares: 16-bit storage types, forward-mode dual numbers, and the few
// scalar functions that formulas use. Plain C++17, compiled alike by g++ and by nvcc.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#ifndef SIAM_HOST_DEVICE
#if defined(__CUDACC__)
#define SIAM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SIAM_HOST_DEVICE inline __attribute__((always_inline))
#endif
#endif

namespace siamcuda::math {

// --- 16-bit storage ------------------------------------------------------------------------------
// Inputs are read in place, computed with in float, and rounded once on the way out. The host
// conversions are spelled out in bits, so that they need no instruction set beyond the baseline.

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// Eight bits of a packed binary code.
struct Bits {
  uint8_t bits;
};

template <class To, class From>
SIAM_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

SIAM_HOST_DEVICE float half_to_float(uint16_t h) {
  // Shift the exponent field into place, then rescale by a product, which also handles subnormals.
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {  // inf or NaN
    return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x007fffffu));
  }
  const float scaled = bit_cast<float>(magnitude) * 5.192296858534828e+33f;  // 2^112
  return bit_cast<float>(sign | bit_cast<uint32_t>(scaled));
}

SIAM_HOST_DEVICE uint16_t float_to_half(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to inf
  if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 puts the half's last bit at the float's last bit, which rounds.
    const float rounded = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(rounded) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

SIAM_HOST_DEVICE float bfloat16_to_float(uint16_t b) {
  return bit_cast<float>(static_cast<uint32_t>(b) << 16);
}

SIAM_HOST_DEVICE uint16_t float_to_bfloat16(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The type a storage type is computed in, and the exact widening and single rounding between them.
template <class T>
struct Storage {
  using Compute = T;
};
template <>
struct Storage<Half> {
  using Compute = float;
};
template <>
struct Storage<BFloat16> {
  using Compute = float;
};

template <>
struct Storage<Bits> {
  using Compute = int32_t;  // a count of bits
};

SIAM_HOST_DEVICE float widen(float x) { return x; }
SIAM_HOST_DEVICE double widen(double x) { return x; }
SIAM_HOST_DEVICE float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return half_to_float(x.bits);
#endif
}
SIAM_HOST_DEVICE float widen(BFloat16 x) { return bfloat16_to_float(x.bits); }

template <class T>
SIAM_HOST_DEVICE T narrow(double x) {
  return static_cast<T>(x);
}
template <>
SIAM_HOST_DEVICE Half narrow<Half>(double x) {
#if defined(__CUDA_ARCH__)
  return Half{__half_as_ushort(__float2half_rn(static_cast<float>(x)))};
#else
  return Half{float_to_half(static_cast<float>(x))};
#endif
}
template <>
SIAM_HOST_DEVICE BFloat16 narrow<BFloat16>(double x) {
  return BFloat16{float_to_bfloat16(static_cast<float>(x))};
}
template <class T>
SIAM_HOST_DEVICE T narrow(float x) {
  return static_cast<T>(x);
}
template <>
SIAM_HOST_DEVICE Half narrow<Half>(float x) {
#if defined(__CUDA_ARCH__)
  return Half{__half_as_ushort(__float2half_rn(x))};
#else
  return Half{float_to_half(x)};
#endif
}
template <>
SIAM_HOST_DEVICE BFloat16 narrow<BFloat16>(float x) {
  return BFloat16{float_to_bfloat16(x)};
}

// --- dual numbers --------------------------------------------------------------------------------
// value + ε·tangent with ε² = 0. A row formula run on duals whose tangents are the upstream vectors
// yields the Hessian-vector product: double backward needs no formula of its own.

template <class T>
struct Dual {
  T value;
  T tangent;
  SIAM_HOST_DEVICE Dual() : value(0), tangent(0) {}
  SIAM_HOST_DEVICE Dual(T v) : value(v), tangent(0) {}  // NOLINT: a constant is a dual
  SIAM_HOST_DEVICE Dual(T v, T t) : value(v), tangent(t) {}
};

template <class T>
struct Scalar {
  using Real = T;
};
template <class T>
struct Scalar<Dual<T>> {
  using Real = T;
};
template <class S>
using Real = typename Scalar<S>::Real;

template <class T>
SIAM_HOST_DEVICE Dual<T> operator+(Dual<T> a, Dual<T> b) {
  return {a.value + b.value, a.tangent + b.tangent};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> operator-(Dual<T> a, Dual<T> b) {
  return {a.value - b.value, a.tangent - b.tangent};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> operator-(Dual<T> a) {
  return {-a.value, -a.tangent};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> operator*(Dual<T> a, Dual<T> b) {
  return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> operator/(Dual<T> a, Dual<T> b) {
  const T quotient = a.value / b.value;
  return {quotient, (a.tangent - quotient * b.tangent) / b.value};
}

SIAM_HOST_DEVICE float real(float x) { return x; }
SIAM_HOST_DEVICE double real(double x) { return x; }
template <class T>
SIAM_HOST_DEVICE T real(Dual<T> x) {
  return x.value;
}

// --- scalar functions ----------------------------------------------------------------------------

SIAM_HOST_DEVICE float sqrt(float x) { return ::sqrtf(x); }
SIAM_HOST_DEVICE double sqrt(double x) { return ::sqrt(x); }
#if defined(__CUDA_ARCH__)
SIAM_HOST_DEVICE float exp(float x) { return ::expf(x); }
SIAM_HOST_DEVICE double exp(double x) { return ::exp(x); }
SIAM_HOST_DEVICE float log1p_unit(float x) { return ::log1pf(x); }
SIAM_HOST_DEVICE double log1p_unit(double x) { return ::log1p(x); }
#else
// On the host, functions without calls and without branches, so that a loop over them becomes SIMD
// code. x = n·ln 2 + r with |r| ≤ ln 2 / 2; a polynomial in r, then 2^n as two factors, so that the
// result may be subnormal. Within 2 ULP; NaN stays NaN, ±inf give inf and 0.
SIAM_HOST_DEVICE float exp(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  float y = x > 89.0f ? 89.0f : x;
  y = y < -104.0f ? -104.0f : y;
  const float shifted = y * 1.44269504088896341f + kShift;
  const float n = shifted - kShift;
  const float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = (p * r) * r + r;
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(kShift);
  const int32_t half = exponent >> 1;
  const float low = bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float high = bit_cast<float>(static_cast<uint32_t>(exponent - half + 127) << 23);
  return ((1.0f + p) * low) * high;
}
SIAM_HOST_DEVICE double exp(double x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5·2^52
  double y = x > 710.0 ? 710.0 : x;
  y = y < -746.0 ? -746.0 : y;
  const double shifted = y * 1.4426950408889634074 + kShift;
  const double n = shifted - kShift;
  const double r = (y - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = (p * r) * r + r;
  const int64_t exponent = bit_cast<int64_t>(shifted) - bit_cast<int64_t>(kShift);
  const int64_t half = exponent / 2;
  const double low = bit_cast<double>(static_cast<uint64_t>(half + 1023) << 52);
  const double high = bit_cast<double>(static_cast<uint64_t>(exponent - half + 1023) << 52);
  return ((1.0 + p) * low) * high;
}
// log(1 + x) for 0 ≤ x ≤ 1, which is all that softplus asks for: 2 artanh(x / (2 + x)).
template <class T, int kTerms>
SIAM_HOST_DEVICE T log1p_series(T x) {
  const T s = x / (T(2) + x), square = s * s;
  T p = T(1) / T(2 * kTerms + 1);
  for (int k = kTerms - 1; k >= 1; --k) p = p * square + T(1) / T(2 * k + 1);
  return T(2) * (s + (s * square) * p);
}
SIAM_HOST_DEVICE float log1p_unit(float x) { return log1p_series<float, 8>(x); }
SIAM_HOST_DEVICE double log1p_unit(double x) { return log1p_series<double, 17>(x); }
#endif
SIAM_HOST_DEVICE float pow(float x, float y) { return ::powf(x, y); }
SIAM_HOST_DEVICE double pow(double x, double y) { return ::pow(x, y); }
SIAM_HOST_DEVICE float abs(float x) { return ::fabsf(x); }
SIAM_HOST_DEVICE double abs(double x) { return ::fabs(x); }

template <class T>
SIAM_HOST_DEVICE Dual<T> sqrt(Dual<T> x) {
  const T root = sqrt(x.value);
  return {root, x.tangent / (2 * root)};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> exp(Dual<T> x) {
  const T e = exp(x.value);
  return {e, e * x.tangent};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> log1p_unit(Dual<T> x) {
  return {log1p_unit(x.value), x.tangent / (1 + x.value)};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> pow(Dual<T> x, T y) {
  return {pow(x.value, y), y * pow(x.value, y - 1) * x.tangent};
}
template <class T>
SIAM_HOST_DEVICE Dual<T> abs(Dual<T> x) {
  return {abs(x.value), x.value < 0 ? -x.tangent : x.value > 0 ? x.tangent : T(0)};
}

// What math/steps.inl asks of a scalar.
template <class S>
SIAM_HOST_DEVICE S multiply_add(S a, S b, S c) {
  return a * b + c;
}
template <class S>
SIAM_HOST_DEVICE S magnitude(S x) {
  return abs(x);
}
template <class S>
SIAM_HOST_DEVICE S sign(S x) {
  using R = Real<S>;
  return S(R(real(x) > 0 ? 1 : real(x) < 0 ? -1 : 0));
}

}  // namespace siamcuda::math
