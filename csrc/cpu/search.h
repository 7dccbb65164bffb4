// Exact search as one instruction set runs it: plain arguments, no torch.
//
// A task is some queries and some rows. Screening compares a lower bound of each distance with what
// its query still accepts; pairs that pass are candidates. When a query's candidates fill up, their
// upper bounds lower what it accepts, and in the end those that are left are computed directly:
// Σ(q−g)² in one order, whatever screened. So a result depends on neither the screening, nor the
// instruction set, nor how the work was divided.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/tiles.h"

namespace siamcuda::cpu {

template <class D>
struct Found {
  D distance;  // squared, or a count of bits
  int64_t position;
};

// Whether a comes before b: by distance, NaN behind all others, then by position.
template <class D>
inline bool comes_before(const Found<D>& a, const Found<D>& b) {
  if (a.distance < b.distance) return true;
  if (b.distance < a.distance) return false;
  const bool a_nan = a.distance != a.distance, b_nan = b.distance != b.distance;
  return a_nan == b_nan ? a.position < b.position : b_nan;
}

// Pairs that screening let through. The squared distance of each lies between `lower` and `upper`,
// counted from the query's `frame`.
struct Candidates {
  int64_t capacity;  // of a query, a multiple of 16
  float* lower;      // [queries, capacity]
  float* upper;      // [queries, capacity]
  int32_t* row;      // [queries, capacity] of the task's matrix
  int32_t* count;    // [queries]
};

// Rows as 8-bit codes: c·scale + center is the row but for a residual whose length is known.
struct CodedRows {
  const uint8_t* codes;  // [panels, ⌈D/4⌉, kCodeColumns, 4], c + 128
  const float* rows;     // [panels, 2, kCodeColumns]: scale, then |row − center|², or NaN
  const float* bounds;   // [panels, kCodeBounds]: see Note [Codes] in codes.inl
  const float* center;   // [D]
};
constexpr int kCodeColumns = 32, kCodeBounds = 4;
// Past this, products of codes don't fit into 32 bits.
constexpr int64_t kMaxCodedColumns = 65536;

template <class C>
struct SearchTask {
  Matrix rows;
  int64_t first;  // position of row 0
  bool cosine;    // a pair with a row of zeros has squared distance 2

  int64_t count;      // queries
  const C* queries;   // [count, padded], zeros behind
  int64_t padded;     // columns rounded up to 16
  const bool* zeros;  // [count] queries that are all zeros

  int64_t k;                      // how many of the nearest are kept; 0: all
  C* bound;                       // [count] distances above it are not accepted; +inf: all are
  Found<C>* nearest;              // [count, k], a heap with the farthest on top
  int64_t* nearest_count;         // [count]
  std::vector<Found<C>>* within;  // [count], where k is 0

  // Where pairs are screened.
  Candidates candidates;  // capacity 0: nothing is screened
  double* frame;          // [count]
  bool* wild;             // [count] queries beyond what screening can do
  float* base;            // [count rounded up to panels] largest lower bound that passes
};

// The queries of a task as codes.
struct CodedQueries {
  int32_t* codes;    // [panels, ⌈D/4⌉, panel rows], 4 codes in each
  int32_t* start;    // [panels, panel rows] takes the 128 of the rows' codes back
  float* factor;     // [panels, panel rows] −2·scale
  float* residual;   // [panels, panel rows] 2·|q − q̂|
  float* magnitude;  // [panels, panel rows] 2·|q̂|
};

// Packed bits.
struct HammingTask {
  const uint8_t* rows;  // [row_count, bytes] through the step
  int64_t step;
  int64_t bytes;
  int64_t first;
  int64_t count;
  const uint8_t* queries;  // [count, bytes]
  int64_t k;
  int32_t* bound;
  Found<int32_t>* nearest;
  int64_t* nearest_count;
  std::vector<Found<int32_t>>* within;
};

// Rows [begin, end) of a task's matrix, or panels of codes.
#define SIAM_DECLARE_SEARCH(level)                                                              \
  namespace level {                                                                             \
  template <class C>                                                                            \
  void search_directly(const SearchTask<C>& task, int64_t begin, int64_t end);                  \
  void begin_tiles(const SearchTask<float>& task);                                              \
  void prepare_norms(const SearchTask<float>& task, const Packed<float>& chunk);                \
  void search_tiles(const SearchTask<float>& task, const Packed<float>& chunk);                 \
  void pack_codes(const Matrix& rows, const float* center, uint8_t* codes, float* of_rows,      \
                  float* bounds, int64_t begin, int64_t end);                                   \
  void begin_codes(const SearchTask<float>& task, const float* center, const CodedQueries& to); \
  void search_codes(const SearchTask<float>& task, const CodedRows& rows,                       \
                    const CodedQueries& queries, int64_t begin, int64_t end);                   \
  template <class C>                                                                            \
  void finish_search(const SearchTask<C>& task);                                                \
  void search_bits(const HammingTask& task, int64_t begin, int64_t end);                        \
  void hamming_rows(const uint8_t* x1, int64_t step1, const uint8_t* x2, int64_t step2,         \
                    int64_t bytes, int32_t* counts, int64_t begin, int64_t end);                \
  template <class C>                                                                            \
  void normalize_rows(const Matrix& rows, C* to, int64_t begin, int64_t end);                   \
  }
SIAM_DECLARE_SEARCH(generic)
#if defined(__x86_64__)
SIAM_DECLARE_SEARCH(avx2)
SIAM_DECLARE_SEARCH(avx512)
#endif
#undef SIAM_DECLARE_SEARCH

}  // namespace siamcuda::cpu
