// How distances are counted, alike on every backend: keys, tables, intervals, units of a metric.
//
// A distance is counted by a *key*: its bits without the sign, which order as the numbers do. The
// first pass counts the top 16 bits; a later pass cuts chosen keys finer, down to single numbers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "math/numerics.h"

namespace siamcuda::math {

// What becomes of d² before it is counted: itself, its root, or half of it (rows of unit length).
enum class Metric : int32_t { kSquared, kEuclidean, kCosine };

constexpr int64_t kTopKeys = 65536;     // values of a key's top 16 bits
constexpr int64_t kSelectBins = 65536;  // parts of an interval that is cut finer
constexpr int kReplicates = 64;         // samples that a bootstrap counts at a time

// Bits of a key below its top 16, and how many of them one table look-up can tell apart.
template <class C>
constexpr int kLowBits = sizeof(C) == 4 ? 15 : 47;
template <class C>
constexpr int kTableBits = sizeof(C) == 4 ? 15 : 16;

template <class C>
using Key = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;

template <class C>
SIAM_HOST_DEVICE Key<C> key_of(C distance) {
  return bit_cast<Key<C>>(distance);
}
template <class C>
constexpr Key<C> kInfinityKey = sizeof(C) == 4 ? Key<C>{0xFF} << 23 : Key<C>(uint64_t{0x7FF} << 52);
// That of a NaN, for what is no distance: more than any other.
template <class C>
constexpr Key<C> kNoKey = kInfinityKey<C> | kInfinityKey<C> >> 1;

// Half of d², but 1 where a vector is zero: it has no direction, and its cosine is 0.
template <class C>
SIAM_HOST_DEVICE C cosine_distance(C d2, bool zero) {
  const C half = C(0.5) * d2;
  return zero & (half == half) ? C(1) : half;
}

// A table says for each top key where its parts begin and how many low bits to drop: base · 64 +
// drop. The bin of a distance with this key, from the entry of its top bits.
template <class C>
SIAM_HOST_DEVICE int64_t table_bin(int64_t entry, Key<C> key) {
  constexpr int kBits = kTableBits<C>;
  const int64_t low = (key >> (kLowBits<C> - kBits)) & ((Key<C>(1) << kBits) - 1);
  return (entry >> 6) + (low >> (entry & 63));
}

// Where in the interval [low, low + (kSelectBins << shift)) a key lies, if `at` is below its width.
template <class C>
struct Interval {
  Key<C> low;
  int shift;

  SIAM_HOST_DEVICE Key<C> at(Key<C> key) const { return key - low; }
  SIAM_HOST_DEVICE Key<C> width() const { return Key<C>(kSelectBins) << shift; }
};

}  // namespace siamcuda::math
