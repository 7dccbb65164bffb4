// One SIMD vector type for every instruction set, on the compiler's vector extensions.
//
// Included inside the namespace of one level, which sets SIAM_VECTOR_BYTES and one of
// SIAM_LEVEL_GENERIC, SIAM_LEVEL_AVX2, SIAM_LEVEL_AVX512. Intrinsics stand only where the
// extensions have no word for the thing: fused multiply-add, masks, 16-bit floats, streaming.
// SIAM_INLINE stands on everything small: a call that is not inlined here spills every vector.

#ifndef SIAM_INLINE
#define SIAM_INLINE __attribute__((always_inline)) inline
#endif

template <class C>
struct VectorTypes;
template <>
struct VectorTypes<float> {
  typedef float Native __attribute__((vector_size(SIAM_VECTOR_BYTES)));
  typedef int32_t Integer __attribute__((vector_size(SIAM_VECTOR_BYTES)));
  static constexpr int32_t kMagnitude = 0x7fffffff;
};
template <>
struct VectorTypes<double> {
  typedef double Native __attribute__((vector_size(SIAM_VECTOR_BYTES)));
  typedef int64_t Integer __attribute__((vector_size(SIAM_VECTOR_BYTES)));
  static constexpr int64_t kMagnitude = 0x7fffffffffffffff;
};

template <class C>
struct Vec {
  using Native = typename VectorTypes<C>::Native;
  using Integer = typename VectorTypes<C>::Integer;
  static constexpr int kWidth = SIAM_VECTOR_BYTES / sizeof(C);
  Native v;

  SIAM_INLINE Vec() : v(Native{}) {}
  SIAM_INLINE Vec(Native native) : v(native) {}  // NOLINT: the same thing
  SIAM_INLINE Vec(C x) : v(x - Native{}) {}      // NOLINT: a constant is a vector
};

template <class C>
SIAM_INLINE Vec<C> operator+(Vec<C> a, Vec<C> b) {
  return a.v + b.v;
}
template <class C>
SIAM_INLINE Vec<C> operator-(Vec<C> a, Vec<C> b) {
  return a.v - b.v;
}
template <class C>
SIAM_INLINE Vec<C> operator-(Vec<C> a) {
  return -a.v;
}
template <class C>
SIAM_INLINE Vec<C> operator*(Vec<C> a, Vec<C> b) {
  return a.v * b.v;
}
template <class C>
SIAM_INLINE Vec<C> magnitude(Vec<C> a) {
  using I = typename Vec<C>::Integer;
  return (typename Vec<C>::Native)((I)a.v & (VectorTypes<C>::kMagnitude - I{}));
}
template <class C>
SIAM_INLINE Vec<C> sign(Vec<C> a) {
  const typename Vec<C>::Native zero{};
  return __builtin_convertvector((a.v < zero) - (a.v > zero), typename Vec<C>::Native);
}

SIAM_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(SIAM_LEVEL_AVX512)
  return (Vec<float>::Native)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v);
#elif defined(SIAM_LEVEL_AVX2)
  return (Vec<float>::Native)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v);
#else
  return a.v * b.v + c.v;
#endif
}
SIAM_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(SIAM_LEVEL_AVX512)
  return (Vec<double>::Native)_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v);
#elif defined(SIAM_LEVEL_AVX2)
  return (Vec<double>::Native)_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v);
#else
  return a.v * b.v + c.v;
#endif
}

// Halving adds in one fixed order: 8, 4, 2, 1 lanes apart.
template <class C>
SIAM_INLINE C add_lanes(Vec<C> a) {
  C lanes[Vec<C>::kWidth];
  std::memcpy(lanes, &a.v, sizeof(lanes));
#pragma GCC unroll 8
  for (int half = Vec<C>::kWidth / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
#if defined(SIAM_LEVEL_AVX512)
template <>
SIAM_INLINE float add_lanes(Vec<float> a) {
  return _mm512_reduce_add_ps((__m512)a.v);
}
template <>
SIAM_INLINE double add_lanes(Vec<double> a) {
  return _mm512_reduce_add_pd((__m512d)a.v);
}
#endif

// The first stage of a transposition is with kStep = 1, the last with half the width: element kStep
// of a changes places with element 0 of b, and so on.
template <int kStep, class Native, int... kLane>
SIAM_INLINE void exchange(Native& a, Native& b, std::integer_sequence<int, kLane...>) {
  constexpr int kWidth = sizeof...(kLane);
#if defined(__clang__)
  const Native low =
      __builtin_shufflevector(a, b, (kLane & kStep ? kWidth + kLane - kStep : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kStep ? kWidth + kLane : kLane + kStep)...);
#else
  using Mask = typename Vec<typename std::decay<decltype(a[0])>::type>::Integer;
  const Native low =
      __builtin_shuffle(a, b, Mask{(kLane & kStep ? kWidth + kLane - kStep : kLane)...});
  b = __builtin_shuffle(a, b, Mask{(kLane & kStep ? kWidth + kLane : kLane + kStep)...});
#endif
  a = low;
}

template <int kStep, class C>
SIAM_INLINE void transpose_stages(typename Vec<C>::Native (&row)[Vec<C>::kWidth]) {
  constexpr int kWidth = Vec<C>::kWidth;
  if constexpr (kStep < kWidth) {
#pragma GCC unroll 16
    for (int r = 0; r < kWidth; ++r) {
      if (!(r & kStep)) {
        exchange<kStep>(row[r], row[r + kStep], std::make_integer_sequence<int, kWidth>{});
      }
    }
    transpose_stages<2 * kStep, C>(row);
  }
}

// to[k·to_step + r] = from[r·from_step + k] for as many rows and columns as a vector has lanes.
template <class C>
SIAM_INLINE void transpose(const C* from, int64_t from_step, C* to, int64_t to_step) {
  constexpr int kWidth = Vec<C>::kWidth;
  typename Vec<C>::Native row[kWidth];
#pragma GCC unroll 16
  for (int r = 0; r < kWidth; ++r) std::memcpy(&row[r], from + r * from_step, sizeof(row[r]));
  transpose_stages<1, C>(row);
#pragma GCC unroll 16
  for (int r = 0; r < kWidth; ++r) std::memcpy(to + r * to_step, &row[r], sizeof(row[r]));
}

// --- loads: any storage type, whole vectors or the first n lanes with zeros behind ---------------

template <class C>
SIAM_INLINE Vec<C> load(const C* p) {
  Vec<C> a;
  std::memcpy(&a.v, p, sizeof(a.v));
  return a;
}

template <class T>
SIAM_INLINE auto load_each(const T* p, int n) {
  using C = typename math::Storage<T>::Compute;
  C lanes[Vec<C>::kWidth] = {};
  for (int i = 0; i < n; ++i) lanes[i] = math::widen(p[i]);
  return load<C>(lanes);
}

SIAM_INLINE Vec<float> load(const math::BFloat16* p) {
  typedef uint16_t Bits __attribute__((vector_size(SIAM_VECTOR_BYTES / 2)));
  typedef uint32_t Wide __attribute__((vector_size(SIAM_VECTOR_BYTES)));
  Bits bits;
  std::memcpy(&bits, p, sizeof(bits));
  return (Vec<float>::Native)(__builtin_convertvector(bits, Wide) << 16);
}

SIAM_INLINE Vec<float> load(const math::Half* p) {
#if defined(SIAM_LEVEL_AVX512)
  return (Vec<float>::Native)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(SIAM_LEVEL_AVX2)
  return (Vec<float>::Native)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  return load_each(p, Vec<float>::kWidth);
#endif
}

template <class T>
SIAM_INLINE auto load_first(const T* p, int n) {
  return load_each(p, n);
}
#if defined(SIAM_LEVEL_AVX512)
SIAM_INLINE Vec<float> load_first(const float* p, int n) {
  return (Vec<float>::Native)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
SIAM_INLINE Vec<double> load_first(const double* p, int n) {
  return (Vec<double>::Native)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
SIAM_INLINE Vec<float> load_first(const math::BFloat16* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
  return (Vec<float>::Native)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}
SIAM_INLINE Vec<float> load_first(const math::Half* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
  return (Vec<float>::Native)_mm512_cvtph_ps(bits);
}
#elif defined(SIAM_LEVEL_AVX2)
SIAM_INLINE Vec<float> load_first(const float* p, int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Vec<float>::Native)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
SIAM_INLINE Vec<double> load_first(const double* p, int n) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return (Vec<double>::Native)_mm256_maskload_pd(p,
                                                 _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane));
}
#endif

// Whether a lane is not 0; NaN is not.
template <class C>
SIAM_INLINE bool any_lane(Vec<C> a) {
  const auto bits = (typename Vec<C>::Integer)magnitude(a).v;
#if defined(SIAM_LEVEL_AVX512)
  return _mm512_test_epi32_mask((__m512i)bits, (__m512i)bits) != 0;
#elif defined(SIAM_LEVEL_AVX2)
  return !_mm256_testz_si256((__m256i)bits, (__m256i)bits);
#else
  uint64_t words[SIAM_VECTOR_BYTES / 8];
  std::memcpy(words, &bits, sizeof(words));
  uint64_t any = 0;
  for (const uint64_t word : words) any |= word;
  return any != 0;
#endif
}

// The first n lanes of a constant, zeros behind: a shift must not reach the padding.
template <class C>
SIAM_INLINE Vec<C> first_lanes(C x, int n) {
  C lanes[Vec<C>::kWidth] = {};
  for (int i = 0; i < n; ++i) lanes[i] = x;
  return load<C>(lanes);
}

// --- stores: rounded once --------------------------------------------------------------------

template <class C>
SIAM_INLINE void store(C* p, Vec<C> a) {
  std::memcpy(p, &a.v, sizeof(a.v));
}

template <class T, class C>
SIAM_INLINE void store_each(T* p, Vec<C> a, int n) {
  C lanes[Vec<C>::kWidth];
  std::memcpy(lanes, &a.v, sizeof(lanes));
  for (int i = 0; i < n; ++i) p[i] = math::narrow<T>(lanes[i]);
}

SIAM_INLINE void store(math::BFloat16* p, Vec<float> a) {
  typedef uint16_t Bits __attribute__((vector_size(SIAM_VECTOR_BYTES / 2)));
  typedef uint32_t Wide __attribute__((vector_size(SIAM_VECTOR_BYTES)));
  const Wide bits = (Wide)a.v;
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Wide nan = (Wide)((bits & 0x7fffffff) > 0x7f800000);
  const Wide result = (nan & ((bits >> 16) | 0x40)) | (~nan & rounded);
  const Bits narrow = __builtin_convertvector(result, Bits);
  std::memcpy(p, &narrow, sizeof(narrow));
}

SIAM_INLINE void store(math::Half* p, Vec<float> a) {
#if defined(SIAM_LEVEL_AVX512)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)a.v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(SIAM_LEVEL_AVX2)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)a.v, _MM_FROUND_TO_NEAREST_INT));
#else
  store_each(p, a, Vec<float>::kWidth);
#endif
}

template <class T, class C>
SIAM_INLINE void store_first(T* p, Vec<C> a, int n) {
  store_each(p, a, n);
}
#if defined(SIAM_LEVEL_AVX512)
SIAM_INLINE void store_first(float* p, Vec<float> a, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a.v);
}
SIAM_INLINE void store_first(double* p, Vec<double> a, int n) {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)a.v);
}
#endif

// Past the cache, for gradients that nobody will read soon. `p` is aligned to the vector stored.
template <class T, class C>
SIAM_INLINE void store_streaming(T* p, Vec<C> a) {
  store(p, a);
}
#if defined(SIAM_LEVEL_AVX512)
SIAM_INLINE void store_streaming(float* p, Vec<float> a) { _mm512_stream_ps(p, (__m512)a.v); }
SIAM_INLINE void store_streaming(double* p, Vec<double> a) { _mm512_stream_pd(p, (__m512d)a.v); }
#elif defined(SIAM_LEVEL_AVX2)
SIAM_INLINE void store_streaming(float* p, Vec<float> a) { _mm256_stream_ps(p, (__m256)a.v); }
SIAM_INLINE void store_streaming(double* p, Vec<double> a) { _mm256_stream_pd(p, (__m256d)a.v); }
#endif

SIAM_INLINE void finish_streaming() {
#if defined(SIAM_LEVEL_AVX512) || defined(SIAM_LEVEL_AVX2)
  _mm_sfence();
#endif
}
