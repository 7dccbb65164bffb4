// CUDA's arithmetic intrinsics, with their rounding: one operation, rounded once, never fused.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace siamcuda::emulator {

// The compiler may contract a * b + c across an inline call; it cannot look through this.
template <class T>
T rounded(T value) {
#if defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  asm("" : "+m"(value));
#endif
  return value;
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace siamcuda::emulator

namespace siamcuda {

inline float __fadd_rn(float a, float b) { return emulator::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return emulator::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return emulator::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return emulator::rounded(a / b); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return emulator::rounded(1.0f / a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return emulator::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return emulator::rounded(a - b); }
inline double __dmul_rn(double a, double b) { return emulator::rounded(a * b); }
inline double __ddiv_rn(double a, double b) { return emulator::rounded(a / b); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline float rsqrtf(float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }

inline int __float_as_int(float a) { return emulator::bits_as<int>(a); }
inline unsigned __float_as_uint(float a) { return emulator::bits_as<unsigned>(a); }
inline float __int_as_float(int a) { return emulator::bits_as<float>(a); }
inline float __uint_as_float(unsigned a) { return emulator::bits_as<float>(a); }
inline long long __double_as_longlong(double a) { return emulator::bits_as<long long>(a); }
inline double __longlong_as_double(long long a) { return emulator::bits_as<double>(a); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }
inline int __clz(int a) { return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a)); }
inline int __clzll(long long a) {
  return a == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(a));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(std::uint64_t{a} * b >> 32);
}

}  // namespace siamcuda
