// Entries of lists, ordered by (distance, position), and pairs computed directly: what screening,
// selection and sorting share. Kernel text for nvcc and for the emulator.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/search_launch.h"
#include "cuda/tiles.cuh"
#include "math/numerics.h"

namespace siamcuda::cuda {

// --- order ---------------------------------------------------------------------------------------

// Distances as integers in the order of lists: finite ones, +inf, NaN, padding. Squares and counts
// have no sign.
template <class C>
using OrderKey = std::conditional_t<sizeof(C) == 8, unsigned long long, unsigned>;

template <class C>
struct Entry {
  OrderKey<C> key;
  int64_t position;
};
template <class C>
constexpr OrderKey<C> kPaddingKey = ~OrderKey<C>{0};
template <class C>
constexpr OrderKey<C> kNanKey = kPaddingKey<C> - 1;

template <class C>
SIAM_HOST_DEVICE Entry<C> padding_entry() {
  return {kPaddingKey<C>, -1};
}
template <class C>
SIAM_HOST_DEVICE Entry<C> entry_of(C distance, int64_t position) {
  if (position < 0) return padding_entry<C>();
  if constexpr (!std::is_integral_v<C>) {
    if (distance != distance) return {kNanKey<C>, position};
  }
  return {math::bit_cast<OrderKey<C>>(distance), position};
}
// One NaN and one padding, whatever made them.
template <class C>
SIAM_HOST_DEVICE C distance_of(OrderKey<C> key) {
  constexpr int kMantissa = sizeof(C) == 8 ? 52 : 23;
  constexpr OrderKey<C> kInfinity = (kPaddingKey<C> >> (kMantissa + 1)) << kMantissa;
  if (key == kPaddingKey<C>) {
    if constexpr (std::is_integral_v<C>) return 0x7FFFFFFF;
    return math::bit_cast<C>(kInfinity);
  }
  if constexpr (!std::is_integral_v<C>) {
    if (key == kNanKey<C>) {
      return math::bit_cast<C>(kInfinity | OrderKey<C>{1} << (kMantissa - 1));
    }
  }
  return math::bit_cast<C>(key);
}
template <class C>
SIAM_HOST_DEVICE bool before(const Entry<C>& a, const Entry<C>& b) {
  return a.key < b.key ||
         (a.key == b.key && static_cast<uint64_t>(a.position) < static_cast<uint64_t>(b.position));
}

template <class C>
SIAM_DEVICE Entry<C> load_entry(const void* distances, const int64_t* positions, int64_t at) {
  return entry_of<C>(load<C>(static_cast<const C*>(distances) + at), load<int64_t>(positions + at));
}
template <class C>
SIAM_DEVICE void store_entry(const Entry<C>& entry, void* distances, int64_t* positions,
                             int64_t at) {
  store(distance_of<C>(entry.key), static_cast<C*>(distances) + at);
  store(entry.position, positions + at);
}

// --- entries in shared memory --------------------------------------------------------------------

template <class C>
struct SharedEntries {
  Shared<OrderKey<C>> keys;
  Shared<int64_t> positions;

  SIAM_DEVICE Entry<C> get(int at) const {
    const OrderKey<C> key = keys[at];
    const int64_t position = positions[at];
    return {key, position};
  }
  SIAM_DEVICE void set(int at, const Entry<C>& entry) const {
    keys[at] = entry.key;
    positions[at] = entry.position;
  }
  SIAM_DEVICE void order(int low, int high) const {
    const Entry<C> a = get(low), b = get(high);
    if (before<C>(b, a)) {
      set(low, b);
      set(high, a);
    }
  }
};

// One step of a bitonic network whose comparisons all point upwards: entry `low` of pair number p
// meets the mirrored one of its 2 · `apart` neighbours (`flip`), or the one `apart` further on.
// What lies behind the last entry would be larger than all, and stay.
SIAM_DEVICE int64_t low_of(int64_t p, int64_t apart) { return 2 * p - (p & (apart - 1)); }
SIAM_DEVICE int64_t high_of(int64_t low, int64_t apart, bool flip) {
  return flip ? low + 2 * (apart - (low & (apart - 1))) - 1 : low + apart;
}

// By all threads of a block, between barriers of its own. `merged`: the entries are what a larger
// network has left to steps of at most kSortEntries / 2.
template <class C>
SIAM_DEVICE void sort_shared(const SharedEntries<C>& entries, int count, bool merged = false) {
  const int thread = static_cast<int>(threadIdx.x);
  int pairs = 1;
  while (2 * pairs < count) pairs *= 2;
  const auto step = [&](int apart, bool flip) {
    SIAM_NO_UNROLL
    for (int p = thread; p < pairs; p += kSearchThreads) {
      const int low = static_cast<int>(low_of(p, apart));
      const int high = static_cast<int>(high_of(low, apart, flip));
      if (high < count) entries.order(low, high);
    }
    __syncthreads();
  };
  __syncthreads();
  if (merged) {
    SIAM_NO_UNROLL
    for (int apart = pairs; apart > 0; apart /= 2) step(apart, false);
    return;
  }
  SIAM_NO_UNROLL
  for (int run = 1; run < count; run *= 2) {
    step(run, true);
    SIAM_NO_UNROLL
    for (int apart = run / 2; apart > 0; apart /= 2) step(apart, false);
  }
}

// --- pairs ---------------------------------------------------------------------------------------

// The type of queries that meet rows of T.
template <class T>
using QueryOf = std::conditional_t<std::is_same_v<T, math::Bits>, math::Bits,
                                   typename math::Storage<T>::Compute>;

// Four lanes share 16 elements: lane l has runs of 16 bytes in the type of the computation, 4 l to
// 4 l + 3 of floats, 2 l, 2 l + 1, 2 l + 8 and 2 l + 9 of doubles, so that one access of the four
// lanes is 64 bytes side by side. Element k belongs to accumulator k mod 16, which its lane has.
constexpr int kPairElements = 4;
template <class C>
constexpr int kPairRun = 16 / sizeof(C);
template <class C>
SIAM_DEVICE int pair_element(int lane, int e) {
  constexpr int kRun = kPairRun<C>;
  return e / kRun * (kPairLanes * kRun) + lane * kRun + e % kRun;
}

// This lane's four of the 16 elements at `from`, of which `left` are there. kWhole: all of them,
// and they begin at a multiple of 16 bytes.
template <bool kWhole, class T>
SIAM_DEVICE void load_elements(const T* from, int lane, int64_t left,
                               typename math::Storage<T>::Compute (&to)[kPairElements]) {
  using C = typename math::Storage<T>::Compute;
  if constexpr (kWhole) {
    constexpr int kRun = kPairRun<C>;
    SIAM_UNROLL
    for (int e = 0; e < kPairElements; e += kRun) {
      const auto part = load<Pack<T, kRun>>(from + pair_element<C>(lane, e));
      SIAM_UNROLL
      for (int k = 0; k < kRun; ++k) to[e + k] = math::widen(part.element[k]);
    }
  } else {
    SIAM_UNROLL
    for (int e = 0; e < kPairElements; ++e) {
      const int at = pair_element<C>(lane, e);
      to[e] = at < left ? C(math::widen(load<T>(from + at))) : C(0);
    }
  }
}

// The sum of the 16 accumulators, for all four lanes: halves are added, 8, 4, 2, 1. All lanes of
// the warp take part. C is the type that the elements were spread as.
template <class C, class Sum>
SIAM_DEVICE Sum add_accumulators(Sum (&sums)[kPairElements]) {
  if constexpr (kPairRun<C> == 4) {
    SIAM_UNROLL
    for (int lanes = kPairLanes / 2; lanes > 0; lanes /= 2) {
      SIAM_UNROLL
      for (int e = 0; e < kPairElements; ++e) {
        sums[e] = sums[e] + __shfl_xor_sync(kWarp, sums[e], lanes);
      }
    }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
  } else {
    Sum even = sums[0] + sums[2], odd = sums[1] + sums[3];
    SIAM_UNROLL
    for (int lanes = kPairLanes / 2; lanes > 0; lanes /= 2) {
      even = even + __shfl_xor_sync(kWarp, even, lanes);
      odd = odd + __shfl_xor_sync(kWarp, odd, lanes);
    }
    return even + odd;
  }
}

// Distances of one row from kQueries queries, in the order of math::direct_squared_distance: lane l
// of four has accumulators 4 l to 4 l + 3, and reads the elements that belong to them, 16 bytes of
// float at a time. The upper halves come by shuffles, in which the whole warp takes part, as it
// does in the loops: `dim` is the same for all its lanes. Zeros past the end of a row change no
// sum.
template <class T, int kQueries>
struct DirectPairs {
  using C = typename math::Storage<T>::Compute;
  using Q = QueryOf<T>;
  // Steps under way together: as many loads as registers can hold.
  static constexpr int kSteps = sizeof(C) == 8 ? 2 : 4;
  static constexpr int kStep = math::kDirectLanes;

  template <int kTogether, bool kWhole>
  SIAM_DEVICE static void add(const Q* const (&x)[kQueries], const T* y, int64_t k, int64_t dim,
                              C (&sums)[kQueries][kPairElements]) {
    const int lane = static_cast<int>(threadIdx.x) % kPairLanes;
    C b[kTogether][kPairElements];
    SIAM_UNROLL
    for (int s = 0; s < kTogether; ++s) {
      load_elements<kWhole>(y + k + s * kStep, lane, dim - k, b[s]);
    }
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      C a[kTogether][kPairElements];
      SIAM_UNROLL
      for (int s = 0; s < kTogether; ++s) {
        load_elements<kWhole>(x[q] + k + s * kStep, lane, dim - k, a[s]);
      }
      SIAM_UNROLL
      for (int s = 0; s < kTogether; ++s) {
        SIAM_UNROLL
        for (int e = 0; e < kPairElements; ++e) {
          const C delta = minus(a[s][e], b[s][e]);
          sums[q][e] = fused(delta, delta, sums[q][e]);
        }
      }
    }
  }

  SIAM_DEVICE static void distances(const Q* const (&x)[kQueries], const T* y, int64_t dim,
                                    bool aligned, C (&to)[kQueries]) {
    C sums[kQueries][kPairElements];
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      SIAM_UNROLL
      for (int e = 0; e < kPairElements; ++e) sums[q][e] = 0;
    }
    int64_t k = 0;
    if (aligned) {
      SIAM_NO_UNROLL
      for (; k + kSteps * kStep <= dim; k += kSteps * kStep) {
        add<kSteps, true>(x, y, k, dim, sums);
      }
      SIAM_NO_UNROLL
      for (; k + kStep <= dim; k += kStep) add<1, true>(x, y, k, dim, sums);
    }
    SIAM_NO_UNROLL
    for (; k < dim; k += kStep) add<1, false>(x, y, k, dim, sums);
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) to[q] = add_accumulators<C>(sums[q]);
  }
};

template <int kQueries>
struct DirectPairs<math::Bits, kQueries> {
  using Q = math::Bits;
  using Words = Pack<uint32_t, 4>;

  // 16 bytes, of which `left` are there.
  template <bool kWhole>
  SIAM_DEVICE static Words load_words(const math::Bits* from, int64_t left) {
    if constexpr (kWhole) return load<Words>(from);
    Words words{};
    SIAM_UNROLL
    for (int b = 0; b < 16; ++b) {
      if (b < left) {
        words.element[b / 4] |= static_cast<uint32_t>(load<math::Bits>(from + b).bits)
                                << (b % 4 * 8);
      }
    }
    return words;
  }
  template <bool kWhole>
  SIAM_DEVICE static void add(const math::Bits* const (&x)[kQueries], const math::Bits* y,
                              int64_t k, int64_t dim, int32_t (&to)[kQueries]) {
    const Words b = load_words<kWhole>(y + k, dim - k);
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const Words a = load_words<kWhole>(x[q] + k, dim - k);
      SIAM_UNROLL
      for (int w = 0; w < 4; ++w) to[q] += __popc(a.element[w] ^ b.element[w]);
    }
  }
  SIAM_DEVICE static void distances(const math::Bits* const (&x)[kQueries], const math::Bits* y,
                                    int64_t dim, bool aligned, int32_t (&to)[kQueries]) {
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) to[q] = 0;
    int64_t k = static_cast<int64_t>(threadIdx.x) % kPairLanes * 16;  // counts have no order
    SIAM_NO_UNROLL
    for (; aligned && k + 16 <= dim; k += kPairLanes * 16) add<true>(x, y, k, dim, to);
    SIAM_NO_UNROLL
    for (; k < dim; k += kPairLanes * 16) add<false>(x, y, k, dim, to);
    SIAM_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      to[q] += __shfl_xor_sync(kWarp, to[q], 2);
      to[q] += __shfl_xor_sync(kWarp, to[q], 1);
    }
  }
};

// Whether both begin every row at a multiple of 16 bytes, which is what loads of neighbours ask.
template <class T>
bool pairs_aligned(const TileMatrix& queries, const TileMatrix& rows) {
  return tile_rows_aligned(queries, 1, sizeof(QueryOf<T>)) && tile_rows_aligned(rows, 1, sizeof(T));
}

inline unsigned search_grid(int64_t items, TileDevice device) {
  const int64_t resident =
      static_cast<int64_t>(std::max(device.multiprocessors, 1)) * kSearchBlocks;
  return static_cast<unsigned>(std::min(items, resident));
}

}  // namespace siamcuda::cuda
