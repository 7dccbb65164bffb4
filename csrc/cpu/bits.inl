// Hamming distances: bits that differ between packed rows.
//
// Rows are turned a block at a time so that word w of kBitRows rows lies side by side; each of them
// is a lane. Integer operations only, so there is nothing to screen.

constexpr int kBitRows = 64;

SIAM_INLINE uint64_t bits_word(const uint8_t* row, int64_t bytes, int64_t word) {
  uint64_t value = 0;
  const int64_t here = std::min<int64_t>(8, bytes - 8 * word);
  std::memcpy(&value, row + 8 * word, here);
  return value;
}

#if defined(SIAM_LEVEL_AVX512)
// counts[c] of one query with kBitRows turned rows.
__attribute__((noinline, target("avx512vpopcntdq"))) inline void count_bits_wide(
    const uint64_t* turned, const uint64_t* query, int64_t words, int32_t* counts) {
  constexpr int kVectors = kBitRows / 8;
  __m512i sum[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) sum[v] = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; ++w) {
    const __m512i own = _mm512_set1_epi64(static_cast<int64_t>(query[w]));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512i other = _mm512_loadu_si512(turned + w * kBitRows + v * 8);
      sum[v] = _mm512_add_epi64(sum[v], _mm512_popcnt_epi64(_mm512_xor_si512(own, other)));
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    _mm256_storeu_si256((__m256i*)(counts + 8 * v), _mm512_cvtepi64_epi32(sum[v]));
  }
}
#endif

inline void count_bits(const uint64_t* turned, const uint64_t* query, int64_t words,
                       int32_t* counts) {
  for (int c = 0; c < kBitRows; ++c) counts[c] = 0;
  for (int64_t w = 0; w < words; ++w) {
    for (int c = 0; c < kBitRows; ++c) {
      // Sums of neighbours of 1, 2 and 4 bits, then of all bytes.
      uint64_t x = turned[w * kBitRows + c] ^ query[w];
      x -= (x >> 1) & 0x5555555555555555u;
      x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
      x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
      counts[c] += static_cast<int32_t>((x * 0x0101010101010101u) >> 56);
    }
  }
}

SIAM_INLINE int32_t bits_that_differ(const uint8_t* a, const uint8_t* b, int64_t bytes) {
  int32_t count = 0;
  int64_t at = 0;
  for (; at + 8 <= bytes; at += 8) {
    uint64_t x, y;
    std::memcpy(&x, a + at, 8);
    std::memcpy(&y, b + at, 8);
    count += __builtin_popcountll(x ^ y);
  }
  if (at < bytes) {
    count += __builtin_popcountll(bits_word(a, bytes, at / 8) ^ bits_word(b, bytes, at / 8));
  }
  return count;
}

void hamming_rows(const uint8_t* x1, int64_t step1, const uint8_t* x2, int64_t step2, int64_t bytes,
                  int32_t* counts, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    counts[row] = bits_that_differ(x1 + row * step1, x2 + row * step2, bytes);
  }
}

void search_bits(const HammingTask& task, int64_t begin, int64_t end) {
  const int64_t words = (task.bytes + 7) / 8;
  Aligned<uint64_t> turned(words * kBitRows), queries(task.count * words);
#if defined(SIAM_LEVEL_AVX512)
  const bool wide = __builtin_cpu_supports("avx512vpopcntdq");
#endif
  for (int64_t q = 0; q < task.count; ++q) {
    for (int64_t w = 0; w < words; ++w) {
      queries.data()[q * words + w] = bits_word(task.queries + q * task.bytes, task.bytes, w);
    }
  }
  alignas(64) int32_t counts[kBitRows];
  for (int64_t first = begin; first < end; first += kBitRows) {
    const int here = static_cast<int>(std::min<int64_t>(kBitRows, end - first));
    for (int c = 0; c < here; ++c) {
      const uint8_t* const row = task.rows + (first + c) * task.step;
      for (int64_t w = 0; w < words; ++w) {
        turned.data()[w * kBitRows + c] = bits_word(row, task.bytes, w);
      }
    }
    for (int64_t q = 0; q < task.count; ++q) {
#if defined(SIAM_LEVEL_AVX512)
      if (wide) {
        count_bits_wide(turned.data(), queries.data() + q * words, words, counts);
      } else {
        count_bits(turned.data(), queries.data() + q * words, words, counts);
      }
#else
      count_bits(turned.data(), queries.data() + q * words, words, counts);
#endif
      const int32_t bound = task.bound[q];
      int any = 0;
      for (int c = 0; c < kBitRows; ++c) any |= counts[c] <= bound;
      if (!any) continue;
      for (int c = 0; c < here; ++c) {
        if (counts[c] <= task.bound[q]) keep(task, q, counts[c], task.first + first + c);
      }
    }
  }
  for (int64_t q = 0; q < task.count; ++q) {
    Found<int32_t>* const list = task.k > 0 ? task.nearest + q * task.k : task.within[q].data();
    const int64_t count =
        task.k > 0 ? task.nearest_count[q] : static_cast<int64_t>(task.within[q].size());
    std::sort(list, list + count,
              [](const Found<int32_t>& a, const Found<int32_t>& b) { return comes_before(a, b); });
  }
}
