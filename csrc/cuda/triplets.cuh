// Triplets of a batch: the rows of distances of a panel of anchors, mined or counted, become rows
// of weights, or two picks an anchor. Kernel text for nvcc and for the emulator.
//
//                    anchor_kernel                picks_kernel            symmetric_kernel
//   a block has      one anchor and its row of    16 rows, 128 of their   32 x 32 weights and the
//                    R distances; one kernel      dimensions              32 x 32 across the
//                    for each kind of mining                              diagonal
//   per thread       4 neighbours at a time       4 dimensions of 4 rows  8 weights of each
//   registers        64, soft 80 (double: 80,     128                     128
//                    soft 128)
//   shared memory    hinge 10 KiB, soft 6,        20 KiB (double: 28):    9 KiB (double: 17)
//                    semihard 13 (double: 14,     sums, and a list of
//                    8, 17): 512 positives        picks
//   blocks an SM     8, soft 6 (double: 6, 4)     4                       4
//   bytes            labels twice (picks: once),  all picks once a        weights and mask once
//                    distances once (semihard:    block, rows that are    each way
//                    twice), weights and norms    picked
//                    of columns once; soft once
//                    more for each positive
//   work             picks: 1 comparison a pair.  2 comparisons an        1 addition a pair
//                    hinge, semihard: a search    anchor and block, 3 D
//                    among sorted positives a     FLOPs a pick
//                    pair (semihard: 2). soft: a
//                    term a pair of them
//
// Up to 512 positives are taken at once, in the order of distance; more of them 512 at a time, for
// another reading of distances, labels and weights each. Counts are integers and do not depend on
// an order, nor does the smallest of several numbers; sums run in one order. Who picked a row is
// found by reading all picks in order: 2 B / 16 comparisons a row beside the B · D products of one.
// A pair's mask bit is set where its weight is: product.cuh says what it is for.
#pragma once

#include "cuda/batch_launch.h"
#include "cuda/common.cuh"
#include "cuda/product.cuh"

namespace siamcuda::cuda {

constexpr int kPositives = 512;

template <class C>
struct Best {
  C value;
  int64_t column;  // -1: none

  SIAM_DEVICE void take(C v, int64_t c, bool farthest) {
    const bool better =
        column < 0 || (farthest ? v > value : v < value) || (v == value && c < column);
    if (c >= 0 && better) {
      value = v;
      column = c;
    }
  }
  SIAM_DEVICE void meet_warp(bool farthest) {
    SIAM_NO_UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
      const C v = __shfl_xor_sync(kWarp, value, offset);
      const int64_t c =
          static_cast<int64_t>(__shfl_xor_sync(kWarp, static_cast<long long>(column), offset));
      take(v, c, farthest);
    }
  }
};

enum class AnchorKind : int { kPick, kHinge, kSoft, kSemihard };

// Distances are not negative, and then order as their bits do.
template <class C>
using OrderedBits = std::conditional_t<sizeof(C) == 8, unsigned long long, unsigned>;

template <class C>
struct AnchorShared {
  Shared<double> sums;                     // [kTileWarps * kAnchorSums]
  Shared<double> total;                    // [kAnchorSums + 1]
  Shared<int> found;                       // [2]
  Shared<int> warp_count;                  // [kTileWarps]
  Shared<C> best;                          // [kTileWarps]
  Shared<int64_t> best_column;             // [kTileWarps]
  Shared<C> key;                           // [kPositives] d² of positives, or d + margin
  Shared<int64_t> column;                  // [kPositives]
  Shared<C> squared;                       // [kPositives] hinge: d²
  Shared<int> count;                       // [kPositives + 1] hinge
  Shared<OrderedBits<C>> near;             // [kPositives] semihard
  Shared<unsigned long long> near_column;  // [kPositives] semihard
  Shared<unsigned> filled;                 // [kPositives / 32] semihard
};

constexpr int kAnchorSums = 8;  // that a block adds up at once
// Blocks an SM: as many as registers allow, since a block waits for memory most of the time.
template <class C>
constexpr int anchor_blocks(AnchorKind kind) {
  const int doubles = sizeof(C) == 8 ? 2 : 0;
  return kind == AnchorKind::kSoft ? 6 - doubles : 8 - doubles;
}

template <class C, AnchorKind kKind>
struct AnchorRow {
  using Row = math::Triplet<math::SquaredDifference>;
  using Bits = OrderedBits<C>;
  static constexpr Bits kEmpty = ~Bits{0};  // above the bits of infinity
  const AnchorArgs& args;
  const DirectRule<C>& rule;
  const AnchorShared<C>& shared;
  bool aligned;
  int64_t row, label;
  int thread;
  const C* d2;
  C* weights;
  unsigned* mask;
  C norm, upstream;
  double value = 0, positive_sum = 0, negative_sum = 0;
  int64_t active = 0, collapsed = 0;

  // --- the block ---------------------------------------------------------------------------------

  // Sums over the block, for all its threads.
  SIAM_DEVICE void all(double (&sums)[kAnchorSums]) const {
    add_halves<4>(sums);
    add_halves<2>(sums);
    add_halves<1>(sums);
    sums[0] += __shfl_xor_sync(kWarp, sums[0], 8);
    sums[0] += __shfl_xor_sync(kWarp, sums[0], 16);
    __syncthreads();  // the last ones' readers are done
    if (thread % 32 < kAnchorSums) {
      shared.sums[thread / 32 * kAnchorSums + thread % 32] = sums[0];
    }
    __syncthreads();
    SIAM_UNROLL
    for (int k = 0; k < kAnchorSums; ++k) {
      double sum = 0;
      SIAM_UNROLL
      for (int w = 0; w < kTileWarps; ++w) {
        const double part = shared.sums[w * kAnchorSums + k];
        sum += part;
      }
      sums[k] = sum;
    }
  }
  SIAM_DEVICE Best<C> all(Best<C> mine, bool farthest) const {
    mine.meet_warp(farthest);
    __syncthreads();  // the last one's readers are done
    if (thread % 32 == 0) {
      shared.best[thread / 32] = mine.value;
      shared.best_column[thread / 32] = mine.column;
    }
    __syncthreads();
    Best<C> found{C(0), -1};
    for (int w = 0; w < kTileWarps; ++w) {
      const C v = shared.best[w];
      const int64_t c = shared.best_column[w];
      found.take(v, c, farthest);
    }
    return found;
  }

  // --- columns -----------------------------------------------------------------------------------

  // Four neighbours a thread, so that several loads are in flight. Bit e is column c + e.
  template <class Visit>
  SIAM_DEVICE void each_four(const Visit& visit) const {
    SIAM_NO_UNROLL
    for (int64_t base = 0; base < args.columns; base += 4 * kTileThreads) visit(base + 4 * thread);
  }
  SIAM_DEVICE unsigned inside(int64_t c) const {
    const int64_t left = args.columns - c;
    return left >= 4 ? 15u : left > 0 ? (1u << left) - 1 : 0u;
  }
  SIAM_DEVICE unsigned same_class(int64_t c, unsigned there) const {
    int64_t found[4];
    if (aligned && there != 0) {
      const auto low = load<Pack<int64_t, 2>>(args.column_labels + c);
      const auto high = load<Pack<int64_t, 2>>(args.column_labels + c + 2);
      found[0] = low.element[0];
      found[1] = low.element[1];
      found[2] = high.element[0];
      found[3] = high.element[1];
    } else {
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        found[e] = (there >> e & 1u) != 0 ? load<int64_t>(args.column_labels + c + e) : label;
      }
    }
    unsigned same = 0;
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) same |= found[e] == label ? 1u << e : 0u;
    return same & there;
  }
  SIAM_DEVICE unsigned self_bit(int64_t c) const {
    const int64_t at = row + args.self - c;
    return at >= 0 && at < 4 ? 1u << at : 0u;
  }
  SIAM_DEVICE Pack<C, 4> four(const void* from, int64_t c) const {
    return load_four<C>(static_cast<const C*>(from) + c, args.columns - c, aligned);
  }
  SIAM_DEVICE static unsigned not_nan(const Pack<C, 4>& d) {
    unsigned bits = 0;
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) bits |= d.element[e] == d.element[e] ? 1u << e : 0u;
    return bits;
  }
  SIAM_DEVICE void store_weights(const Pack<C, 4>& four, int64_t c) const {
    constexpr int kAccess = 16 / sizeof(C);
    if (aligned && c < args.columns) {
      SIAM_UNROLL
      for (int e = 0; e < 4; e += kAccess) {
        Pack<C, kAccess> part;
        SIAM_UNROLL
        for (int k = 0; k < kAccess; ++k) part.element[k] = four.element[e + k];
        store(part, weights + c + e);
      }
      return;
    }
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (c + e < args.columns) store(four.element[e], weights + c + e);
    }
  }
  SIAM_DEVICE bool is_direct(C squared, C other_norm) const {
    return math::needs_direct(squared, norm + other_norm, rule.threshold, rule.smallest,
                              rule.largest);
  }
  // Eight lanes have a word of 32 columns.
  SIAM_DEVICE void store_mask(unsigned bits, int64_t c) const {
    bits <<= c % 32;
    SIAM_UNROLL
    for (int offset = 1; offset < 8; offset *= 2) bits |= __shfl_xor_sync(kWarp, bits, offset);
    if (c % 32 == 0 && c < args.columns) store(bits, mask + c / 32);
  }
  SIAM_DEVICE void add_to_mask(int64_t c) const {
    const C other = load<C>(static_cast<const C*>(args.column_norms) + c);
    if (is_direct(load<C>(d2 + c), other)) atomicOr(mask + c / 32, 1u << (c % 32));
  }
  SIAM_DEVICE void clear() const {
    if (weights == nullptr) return;
    each_four([&](int64_t c) {
      store_weights(Pack<C, 4>{}, c);
      store_mask(0, c);
    });
  }

  SIAM_DEVICE C unit(C squared) const {
    return args.params.squared ? squared : math::sqrt(squared);
  }
  SIAM_DEVICE C slope(C distance) const {
    return args.params.squared ? C(1) : distance == 0 ? C(0) : C(0.5) / distance;
  }
  SIAM_DEVICE math::Terms<C, 2> term(C positive, C negative) const {
    const C sums[2] = {positive, negative};
    return math::TripletLoss::evaluate<Row>(args.params, sums, Label::kGenuine);
  }
  SIAM_DEVICE void count_term(C positive, C negative, C of) {
    value += of;
    active += of != 0;
    collapsed += negative == 0;
    positive_sum += unit(positive);
    negative_sum += unit(negative);
  }

  // --- positives ---------------------------------------------------------------------------------

  // All positives into `key` and `column`, in no order, if they fit: their number, else -1.
  SIAM_DEVICE int gather_all() const {
    __syncthreads();  // the last anchor's are no longer read
    if (thread < 2) shared.found[thread] = 0;
    __syncthreads();
    const auto take = [&](int64_t c) {
      const unsigned there = inside(c);
      unsigned same = there != 0 ? same_class(c, there) & ~self_bit(c) : 0u;
      while (same != 0) {
        const int e = __ffs(static_cast<int>(same)) - 1;
        same &= same - 1;
        const int at = atomicAdd(shared.found + 0, 1);
        if (at < kPositives) shared.column[at] = c + e;
      }
    };
    each_four(take);
    __syncthreads();
    const int same = shared.found[0];
    if (same > kPositives) return -1;
    // A NaN is at no place of the order, and the last ones stay behind.
    C key[4];
    int64_t column[4];
    int spoilt = 0;
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int k = thread + e * kTileThreads;
      column[e] = -1;
      key[e] = 0;
      if (k >= same) continue;
      column[e] = shared.column[k];
      key[e] = load<C>(d2 + column[e]);
      spoilt += key[e] != key[e];
      shared.key[k] = key[e];
    }
    if (spoilt != 0) atomicAdd(shared.found + 1, spoilt);
    __syncthreads();
    const int nans = shared.found[1];
    if (same > kTileThreads) {
      sort(same);
      return same - nans;
    }
    int rank = 0;
    SIAM_NO_UNROLL
    for (int k = 0; k < same; ++k) {
      const C other = shared.key[k];
      const int64_t at = shared.column[k];
      rank += other < key[0] || (other == key[0] && at < column[0]);
    }
    __syncthreads();
    if (column[0] >= 0 && key[0] == key[0]) {
      shared.key[rank] = key[0];
      shared.column[rank] = column[0];
    }
    __syncthreads();
    return same - nans;
  }

  // The next positives from `cursor` on, at most kPositives.
  SIAM_DEVICE int gather(int64_t& cursor) const {
    int found = 0;
    __syncthreads();  // the last ones are no longer read
    SIAM_NO_UNROLL
    for (; cursor < args.columns; cursor += kTileThreads) {
      const int64_t c = cursor + thread;
      bool here = c < args.columns && c != row + args.self &&
                  load<int64_t>(args.column_labels + c) == label;
      const C key = here ? load<C>(d2 + c) : C(0);
      here = here && key == key;
      const unsigned lanes = __ballot_sync(kWarp, here);
      if (thread % 32 == 0) shared.warp_count[thread / 32] = __popc(lanes);
      __syncthreads();
      int before = 0, together = 0;
      for (int w = 0; w < kTileWarps; ++w) {
        const int n = shared.warp_count[w];
        if (w < thread / 32) before += n;
        together += n;
      }
      __syncthreads();
      if (found + together > kPositives) break;
      if (here) {
        const int at = found + before + __popc(lanes & ((1u << (thread % 32)) - 1));
        shared.key[at] = key;
        shared.column[at] = c;
      }
      found += together;
    }
    __syncthreads();
    sort(found);
    return found;
  }

  // By key, then by column; NaN and what is not there come last.
  SIAM_DEVICE void sort(int count) const {
    int size = 1;
    while (size < count) size *= 2;
    SIAM_NO_UNROLL
    for (int k = thread; k < size; k += kTileThreads) {
      bool there = k < count;
      if (there) {
        const C key = shared.key[k];
        there = key == key;
      }
      if (there) continue;
      shared.key[k] = math::bit_cast<float>(0x7f800000u);  // inf
      shared.column[k] = -1;
    }
    __syncthreads();
    SIAM_NO_UNROLL
    for (int run = 2; run <= size; run *= 2) {
      SIAM_NO_UNROLL
      for (int apart = run / 2; apart > 0; apart /= 2) {
        SIAM_NO_UNROLL
        for (int pair = thread; pair < size / 2; pair += kTileThreads) {
          const int low = 2 * pair - (pair & (apart - 1)), high = low + apart;
          const bool ascending = (low & run) == 0;
          const C a = shared.key[low], b = shared.key[high];
          const int64_t at_a = shared.column[low], at_b = shared.column[high];
          const bool after =
              b < a || (a == b && static_cast<uint64_t>(at_b) < static_cast<uint64_t>(at_a));
          if (after == ascending) {
            shared.key[low] = b;
            shared.key[high] = a;
            shared.column[low] = at_b;
            shared.column[high] = at_a;
          }
        }
        __syncthreads();
      }
    }
  }

  // How many of `count` ascending keys, at least one, are below each of four values, or with
  // kEqual at most as large. Four searches side by side, without branches.
  template <bool kEqual>
  SIAM_DEVICE void search(int count, const C (&v)[4], int (&below)[4]) const {
    int step = 1;
    while (2 * step <= count) step *= 2;
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) below[e] = 0;
    SIAM_NO_UNROLL
    for (; step > 0; step /= 2) {
      C key[4];
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int at = below[e] + step;
        key[e] = shared.key[(at < count ? at : count) - 1];
      }
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        const bool further = kEqual ? key[e] <= v[e] : key[e] < v[e];
        if (further && below[e] + step <= count) below[e] += step;
      }
    }
  }

  // --- every triplet -----------------------------------------------------------------------------

  // Sums over negatives, which do not depend on the positives; of one thread.
  struct Negatives {
    double distances = 0;
    int known = 0, zeros = 0, infinite = 0;
  };

  // Turns what negatives have together into weights; returns which pairs are direct.
  SIAM_DEVICE unsigned scale(int64_t c, unsigned positive, unsigned negative, const Pack<C, 4>& d,
                             const C (&v)[4], Pack<C, 4>& weight) const {
    unsigned weighed = positive;
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      C& w = weight.element[e];
      if ((negative >> e & 1u) == 0 || w == 0) continue;
      w = w * (kKind == AnchorKind::kSoft ? upstream : -upstream * slope(v[e]));
      weighed |= 1u << e;
    }
    if (weighed == 0) return 0;
    const Pack<C, 4> norms = four(args.column_norms, c);
    unsigned direct = 0;
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      direct |= is_direct(d.element[e], norms.element[e]) ? 1u << e : 0u;
    }
    return direct & weighed;
  }

  // Visits the row once: `add` gives the weights of four negatives, before they are scaled. Where
  // positives come in several lots, weights are added up, and the last lot scales them.
  template <class Add>
  SIAM_DEVICE void weigh(bool first, bool last, Negatives& negatives, const Add& add) {
    each_four([&](int64_t c) {
      const unsigned there = inside(c);
      unsigned direct = 0;
      if (there != 0) {
        const Pack<C, 4> d = four(d2, c);
        Pack<C, 4> weight{};
        if (weights != nullptr && !first) weight = four(weights, c);
        const unsigned same = same_class(c, there), known = not_nan(d) & there;
        const unsigned negative = known & ~same;
        C v[4];
        SIAM_UNROLL
        for (int e = 0; e < 4; ++e) v[e] = unit(d.element[e]);
        if (first) {
          negatives.known += __popc(negative);
          unsigned ends = 0;  // zeros and infinities, which are rare
          SIAM_UNROLL
          for (int e = 0; e < 4; ++e) {
            const bool there_is = (negative >> e & 1u) != 0;
            negatives.distances += there_is ? v[e] : C(0);
            ends |= there_is && (d.element[e] == 0 || !is_finite(d.element[e])) ? 1u << e : 0u;
          }
          if (ends != 0) {
            SIAM_UNROLL
            for (int e = 0; e < 4; ++e) {
              if ((ends >> e & 1u) == 0) continue;
              negatives.zeros += d.element[e] == 0;
              negatives.infinite += d.element[e] != 0;
            }
          }
        }
        add(negative, d, v, weight);
        if (weights != nullptr) {
          if (last) direct = scale(c, known & same & ~self_bit(c), negative, d, v, weight);
          store_weights(weight, c);
        }
      }
      if (weights != nullptr && last) store_mask(direct, c);
    });
  }

  // By the hinge max(0, key − d), where a key is a positive's d + margin.
  SIAM_DEVICE void hinge(int count, bool first, bool last) {
    Negatives negatives;
    const C margin = static_cast<C>(args.params.margin);
    for (int k = thread; k < count; k += kTileThreads) {
      const C d = shared.key[k];
      shared.squared[k] = d;
      shared.key[k] = unit(d) + margin;
    }
    for (int k = thread; k <= count; k += kTileThreads) shared.count[k] = 0;
    __syncthreads();
    const C largest = count > 0 ? static_cast<C>(shared.key[count - 1]) : C(0);
    weigh(first, last, negatives,
          [&](unsigned negative, const Pack<C, 4>&, const C(&v)[4], Pack<C, 4>& weight) {
            unsigned near = 0;
            SIAM_UNROLL
            for (int e = 0; e < 4; ++e) near |= v[e] < largest ? 1u << e : 0u;
            near &= negative;
            if (near == 0) return;
            int idle[4];
            search<true>(count, v, idle);
            SIAM_UNROLL
            for (int e = 0; e < 4; ++e) {
              if ((near >> e & 1u) == 0) continue;
              atomicAdd(shared.count + idle[e], 1);  // an integer: in any order
              const int times = count - idle[e];
              value -= static_cast<double>(times) * static_cast<double>(v[e]);
              weight.element[e] = weight.element[e] + static_cast<C>(times);
            }
          });
    __syncthreads();
    // Key k is above the negatives that found at most k keys idle.
    const int run = (count + kTileThreads - 1) / kTileThreads;
    int sum = 0;
    for (int k = thread * run; k < (thread + 1) * run && k < count; ++k) {
      const int n = shared.count[k];
      sum += n;
    }
    int upto = sum;
    SIAM_UNROLL
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(kWarp, upto, offset);
      if (thread % 32 >= offset) upto += other;
    }
    if (thread % 32 == 31) shared.warp_count[thread / 32] = upto;
    __syncthreads();
    int times = upto - sum, infinite = 0;
    for (int w = 0; w < thread / 32; ++w) {
      const int n = shared.warp_count[w];
      times += n;
    }
    for (int k = thread * run; k < (thread + 1) * run && k < count; ++k) {
      const int n = shared.count[k];
      const C key = shared.key[k], d = unit(shared.squared[k]);
      const int64_t c = shared.column[k];
      times += n;
      positive_sum += d;
      infinite += !is_finite(key);
      active += times;
      if (times != 0) value += static_cast<double>(times) * static_cast<double>(key);
      if (weights != nullptr && times != 0) {
        store(upstream * static_cast<C>(times) * slope(d), weights + c);
      }
    }
    add_lot(count, first, negatives, infinite);
  }

  // By softplus, which has to meet every positive with every negative.
  SIAM_DEVICE void soft(int count, bool first, bool last) {
    Negatives negatives;
    weigh(first, last, negatives,
          [&](unsigned negative, const Pack<C, 4>& d, const C(&)[4], Pack<C, 4>& weight) {
            SIAM_UNROLL
            for (int e = 0; e < 4; ++e) {
              if ((negative >> e & 1u) == 0) continue;
              C sum = 0;
              SIAM_NO_UNROLL
              for (int k = 0; k < count; ++k) {
                const C positive = shared.key[k];
                const auto t = term(positive, d.element[e]);
                value += t.value;
                active += t.value != 0;
                sum = sum + t.slope[1];
              }
              weight.element[e] = weight.element[e] + sum;
            }
          });
    for (int k = thread; k < count; k += kTileThreads) {
      const C positive = shared.key[k];
      positive_sum += unit(positive);
    }
    add_lot(count, first, negatives, 0);
    if (weights == nullptr) return;
    SIAM_NO_UNROLL
    for (int k = thread / 32; k < count; k += kTileWarps) {
      const C positive = shared.key[k];
      double sum = 0;
      SIAM_NO_UNROLL
      for (int64_t c = thread % 32; c < args.columns; c += 32) {
        const C negative = load<C>(d2 + c);
        if (negative != negative || load<int64_t>(args.column_labels + c) == label) continue;
        sum += term(positive, negative).slope[0];
      }
      for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWarp, sum, offset);
      const int64_t c = shared.column[k];
      if (thread % 32 == 0) store(upstream * static_cast<C>(sum), weights + c);
    }
  }

  // Adds what a lot of positives gave to the anchor's totals, which thread 0 has.
  SIAM_DEVICE void add_lot(int count, bool first, const Negatives& negatives, int infinite_keys) {
    double sums[kAnchorSums] = {value,
                                static_cast<double>(active),
                                positive_sum,
                                static_cast<double>(infinite_keys),
                                negatives.distances,
                                static_cast<double>(negatives.known),
                                static_cast<double>(negatives.zeros),
                                static_cast<double>(negatives.infinite)};
    all(sums);
    value = positive_sum = 0;
    active = 0;
    if (thread != 0) return;
    SIAM_UNROLL
    for (int k = 0; k < kAnchorSums; ++k) {
      const double before = first ? 0.0 : static_cast<double>(shared.total[k]);
      shared.total[k] = before + sums[k];
    }
    const double before = first ? 0.0 : static_cast<double>(shared.total[kAnchorSums]);
    shared.total[kAnchorSums] = before + count;
  }

  SIAM_DEVICE void every_triplet() {
    int count = gather_all();
    if (count == 0) return finish_empty();
    const bool all_at_once = count > 0;
    int64_t cursor = all_at_once ? args.columns : 0;
    SIAM_NO_UNROLL
    for (bool first = true; first || cursor < args.columns; first = false) {
      if (!all_at_once) count = gather(cursor);
      if constexpr (kKind == AnchorKind::kSoft) {
        soft(count, first, cursor >= args.columns);
      } else {
        hinge(count, first, cursor >= args.columns);
      }
    }
    if (thread != 0) return;
    double sums[kAnchorSums];
    SIAM_UNROLL
    for (int k = 0; k < kAnchorSums; ++k) sums[k] = shared.total[k];
    const double positives = shared.total[kAnchorSums], negatives = sums[5];
    const double terms = positives * negatives;
    if (terms == 0) return finish(0, 0, 0, 0, 0, 0, 0);
    // inf + margin − inf is NaN, which counts as active so that it is seen.
    const double unknown = sums[3] * sums[7];
    finish(unknown > 0 ? math::bit_cast<float>(0x7fc00000u) : sums[0], terms, sums[1] + unknown,
           sums[6] * positives, terms, sums[2] * negatives, sums[4] * positives);
  }

  // --- each positive with one negative -----------------------------------------------------------

  // A lot of positives, ascending: key k and the next one bound slot k, which keeps its nearest
  // negative, so that the nearest one beyond a positive is that of the first slot that has any.
  SIAM_DEVICE bool semihard(int count, bool first, Best<C>& farthest) {
    for (int k = thread; k < count; k += kTileThreads) {
      shared.near[k] = kEmpty;
      shared.near_column[k] = ~0ull;
    }
    __syncthreads();
    const C largest = count > 0 ? static_cast<C>(shared.key[count - 1]) : C(0);
    Best<C> beyond{C(0), -1}, far{C(0), -1};  // of them all: most negatives, in registers
    const auto slots = [&](int64_t c, const Pack<C, 4>& d, unsigned negative, const auto& visit) {
      unsigned between = 0;
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) between |= d.element[e] <= largest ? 1u << e : 0u;
      between &= negative;
      if (between == 0 || count == 0) return;
      int below[4];
      search<false>(count, d.element, below);
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        // Plus 0, so that there is one zero.
        if ((between >> e & 1u) == 0 || below[e] == 0) continue;
        visit(below[e] - 1, math::bit_cast<Bits>(d.element[e] + C(0)), c + e);
      }
    };
    each_four([&](int64_t c) {
      const unsigned there = inside(c);
      if (there != 0) {
        const Pack<C, 4> d = four(d2, c);
        const unsigned negative = not_nan(d) & there & ~same_class(c, there);
        SIAM_UNROLL
        for (int e = 0; e < 4; ++e) {
          const C v = d.element[e];
          if ((negative >> e & 1u) == 0) continue;
          if (first && (far.column < 0 || v > far.value)) far = {v, c + e};
          if (v > largest && (beyond.column < 0 || v < beyond.value)) beyond = {v, c + e};
        }
        slots(c, d, negative,
              [&](int slot, Bits bits, int64_t) { atomicMin(shared.near + slot, bits); });
        if (first && weights != nullptr) store_weights(Pack<C, 4>{}, c);
      }
      if (first && weights != nullptr) store_mask(0, c);
    });
    if (first) farthest = all(far, true);
    if (farthest.column < 0) return false;
    beyond = all(beyond, false);
    if (count == 0) return true;
    // The lowest column that has what the slot keeps.
    each_four([&](int64_t c) {
      const unsigned there = inside(c);
      if (there == 0) return;
      const Pack<C, 4> d = four(d2, c);
      const unsigned negative = not_nan(d) & there & ~same_class(c, there);
      slots(c, d, negative, [&](int slot, Bits bits, int64_t column) {
        const Bits kept = shared.near[slot];
        if (bits == kept) {
          atomicMin(shared.near_column + slot, static_cast<unsigned long long>(column));
        }
      });
    });
    __syncthreads();
    if (thread == 0 && beyond.column >= 0) {
      shared.near[count - 1] = math::bit_cast<Bits>(beyond.value);
      shared.near_column[count - 1] = static_cast<unsigned long long>(beyond.column);
    }
    __syncthreads();
    SIAM_NO_UNROLL
    for (int base = 0; base < count; base += kTileThreads) {
      const int k = base + thread;
      bool here = false;
      if (k < count) {
        const Bits bits = shared.near[k];
        here = bits != kEmpty;
      }
      const unsigned word = __ballot_sync(kWarp, here);
      if (thread % 32 == 0) shared.filled[k / 32] = word;
    }
    __syncthreads();
    SIAM_NO_UNROLL
    for (int k = thread; k < count; k += kTileThreads) {
      const C positive = shared.key[k];
      Best<C> near = farthest;
      int word = k / 32;
      unsigned filled = shared.filled[word];
      filled &= ~0u << (k % 32);
      while (filled == 0 && (word + 1) * 32 < count) filled = shared.filled[++word];
      if (filled != 0) {
        const int slot = word * 32 + __ffs(static_cast<int>(filled)) - 1;
        const Bits bits = shared.near[slot];
        const unsigned long long column = shared.near_column[slot];
        near = {math::bit_cast<C>(bits), static_cast<int64_t>(column)};
      }
      const auto t = term(positive, near.value);
      count_term(positive, near.value, t.value);
      if (weights == nullptr) continue;
      const int64_t c = shared.column[k];
      store(upstream * t.slope[0], weights + c);
      add_to_mask(c);
      if (t.slope[1] != 0) add_to_mask(near.column);
      shared.key[k] = t.slope[1];  // nobody else reads what this thread has read
      shared.column[k] = near.column;
    }
    if (weights == nullptr) return true;
    __syncthreads();
    // Several positives may share a negative; one thread adds what they give it, in order.
    SIAM_NO_UNROLL
    for (int k = 0; k < count; ++k) {
      const int64_t c = shared.column[k];
      if (c % kTileThreads != thread) continue;
      const C s = shared.key[k];
      store(load<C>(weights + c) + upstream * s, weights + c);
    }
    __syncwarp();  // the barriers to come want whole warps
    return true;
  }

  SIAM_DEVICE void semihard_triplets() {
    Best<C> farthest{C(0), -1};
    int count = gather_all();
    if (count == 0) return finish_empty();
    const bool all_at_once = count > 0;
    int64_t cursor = all_at_once ? args.columns : 0, positives = 0;
    SIAM_NO_UNROLL
    for (bool first = true; first || cursor < args.columns; first = false) {
      if (!all_at_once) count = gather(cursor);
      if (!semihard(count, first, farthest)) break;
      positives += count;
    }
    double sums[kAnchorSums] = {value,
                                static_cast<double>(active),
                                positive_sum,
                                static_cast<double>(collapsed),
                                negative_sum,
                                0,
                                0,
                                0};
    all(sums);
    const double terms = static_cast<double>(positives);
    finish(sums[0], terms, sums[1], sums[3], terms, sums[2], sums[4]);
  }

  // The farthest or the nearest positive, and the nearest negative.
  SIAM_DEVICE void pick() {
    const bool hard = args.mining == Mining::kHard;
    Best<C> positive{C(0), -1}, negative{C(0), -1};
    each_four([&](int64_t c) {
      const unsigned there = inside(c);
      if (there == 0) return;
      const Pack<C, 4> d = four(d2, c);
      const unsigned same = same_class(c, there), known = not_nan(d) & there & ~self_bit(c);
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        if ((known >> e & 1u) == 0) continue;
        const C v = d.element[e];
        if ((same >> e & 1u) == 0) {
          if (negative.column < 0 || v < negative.value) negative = {v, c + e};
        } else if (positive.column < 0 || (hard ? v > positive.value : v < positive.value)) {
          positive = {v, c + e};
        }
      }
    });
    positive = all(positive, hard);
    negative = all(negative, false);
    const bool there = positive.column >= 0 && negative.column >= 0;
    if (thread != 0) return;
    store(there ? positive.column : int64_t{-1}, args.picked + 2 * row);
    store(there ? negative.column : int64_t{-1}, args.picked + 2 * row + 1);
    math::Terms<C, 2> t{};
    if (there) {
      t = term(positive.value, negative.value);
      count_term(positive.value, negative.value, t.value);
    }
    C* const to = static_cast<C*>(args.picked_weights) + 2 * row;
    store(upstream * t.slope[0], to);
    store(upstream * t.slope[1], to + 1);
    finish(value, there, static_cast<double>(active), static_cast<double>(collapsed), there,
           positive_sum, negative_sum);
  }

  // --- an anchor ---------------------------------------------------------------------------------

  SIAM_DEVICE void finish(double of_all, double terms, double of_active, double of_collapsed,
                          double pairs, double of_positives, double of_negatives) const {
    if (thread != 0) return;
    store(of_all, args.values + row);
    int64_t* const counts = args.counts + row * kAnchorCounts;
    store(static_cast<int64_t>(terms), counts);
    store(static_cast<int64_t>(of_active), counts + 1);
    store(static_cast<int64_t>(of_collapsed), counts + 2);
    store(static_cast<int64_t>(pairs), counts + 3);
    store(of_positives, args.distance_sums + 2 * row);
    store(of_negatives, args.distance_sums + 2 * row + 1);
  }
  SIAM_DEVICE void finish_empty() const {
    clear();
    finish(0, 0, 0, 0, 0, 0, 0);
  }

  // The terms of a NaN anchor count by label alone, and are NaN.
  SIAM_DEVICE void spoil() const {
    double sums[kAnchorSums] = {};
    each_four([&](int64_t c) {
      const unsigned there = inside(c);
      if (there != 0) sums[0] += __popc(same_class(c, there));
    });
    all(sums);
    clear();
    const bool self = row + args.self >= 0 && row + args.self < args.columns;
    const double left = sums[0] - self, others = static_cast<double>(args.columns) - sums[0];
    double terms = left > 0 && others > 0 ? 1 : 0;
    if (kKind != AnchorKind::kPick) terms *= left;
    if (kKind != AnchorKind::kPick && kKind != AnchorKind::kSemihard) terms *= others;
    if (kKind == AnchorKind::kPick && thread < 2) {
      store(int64_t{-1}, args.picked + 2 * row + thread);
    }
    finish(terms > 0 ? static_cast<double>(norm) : 0, terms, terms, 0, 0, 0, 0);
  }

  SIAM_DEVICE void run() {
    if (norm != norm) return spoil();
    if constexpr (kKind == AnchorKind::kPick) {
      pick();
    } else if constexpr (kKind == AnchorKind::kSemihard) {
      semihard_triplets();
    } else {
      every_triplet();
    }
  }
};

template <class C, AnchorKind kKind>
SIAM_KERNEL(kTileThreads, anchor_blocks<C>(kKind))
void anchor_kernel(const AnchorArgs args, const DirectRule<C> rule, const bool aligned) {
  constexpr int kLots = kKind == AnchorKind::kPick ? 1 : kPositives;
  constexpr int kHinges = kKind == AnchorKind::kHinge ? kPositives : 1;
  constexpr int kSlots = kKind == AnchorKind::kSemihard ? kPositives : 1;
  SIAM_SHARED(double, sums, kTileWarps* kAnchorSums);
  SIAM_SHARED(double, total, kAnchorSums + 1);
  SIAM_SHARED(int, found, 2);
  SIAM_SHARED(int, warp_count, kTileWarps);
  SIAM_SHARED(C, best, kTileWarps);
  SIAM_SHARED(int64_t, best_column, kTileWarps);
  SIAM_SHARED(C, key, kLots);
  SIAM_SHARED(int64_t, column, kLots);
  SIAM_SHARED(C, squared, kHinges);
  SIAM_SHARED(int, count, kHinges + 1);
  SIAM_SHARED(OrderedBits<C>, near, kSlots);
  SIAM_SHARED(unsigned long long, near_column, kSlots);
  SIAM_SHARED(unsigned, filled, kPositives / 32);
  const AnchorShared<C> shared{sums,   total,   found, warp_count, best,        best_column, key,
                               column, squared, count, near,       near_column, filled};
  SIAM_NO_UNROLL
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const bool weighed = kKind != AnchorKind::kPick && args.weights != nullptr;
    AnchorRow<C, kKind> anchor{
        args,
        rule,
        shared,
        aligned,
        row,
        load<int64_t>(args.row_labels + row),
        static_cast<int>(threadIdx.x),
        static_cast<const C*>(args.distances) + row * args.columns,
        weighed ? static_cast<C*>(args.weights) + row * args.columns : nullptr,
        weighed ? args.mask + row * args.mask_words : nullptr,
        load<C>(static_cast<const C*>(args.norms) + row),
        args.upstream == nullptr ? C(1) : load<C>(static_cast<const C*>(args.upstream) + row)};
    anchor.run();
  }
}

// --- gradients of picks --------------------------------------------------------------------------

constexpr int kPickBlocks = 4;  // an SM
constexpr int kPickRows = 16;   // of a block, a quarter of them for each warp
constexpr int kPickLoads = 4;   // anchors that a thread looks at together
constexpr int kPickRound = 2 * kPickLoads * kTileThreads;
constexpr int kPickList = kPickRound + kPickRound / 2;  // worked off when a round may not fit

template <class T>
struct PickedRows {
  using C = typename math::Storage<T>::Compute;
  static constexpr int kWarpRows = kPickRows / kTileWarps;
  static constexpr int kTogether = sizeof(C) == 8 ? 2 : 4;  // picks whose rows are on their way
  const PicksArgs& args;
  const Shared<C>& sums;  // [kPickRows, kGradientDims], each of one thread alone
  int64_t first_row, first_dim;
  int lane, warp;

  SIAM_DEVICE int64_t dim(int e) const { return first_dim + 32 * e; }
  SIAM_DEVICE int place(int local, int e) const { return local * kGradientDims + lane + 32 * e; }
  SIAM_DEVICE T element(const TileMatrix& m, int64_t r, int e) const {
    return load<T>(static_cast<const T*>(m.data) + r * m.row_step + dim(e));
  }

  // Each lane has a pick of one of the warp's rows, or none; they are added in the order of lanes.
  SIAM_DEVICE void add(bool here, int local, int64_t pick, int64_t other) const {
    C weight = 0;
    if (here) {
      weight = 2 * load<C>(static_cast<const C*>(args.picked_weights) + pick);
      const C far = load<C>(static_cast<const C*>(args.other.norms) + other);
      const C norm = load<C>(static_cast<const C*>(args.own.norms) + first_row + local);
      if (is_finite(norm) && !is_finite(far)) weight = 0;
    }
    unsigned hits = __ballot_sync(kWarp, weight != 0);
    SIAM_NO_UNROLL
    while (hits != 0) {
      T x[kTogether][4], y[kTogether][4];
      C weights[kTogether];
      int rows[kTogether];
      SIAM_UNROLL
      for (int u = 0; u < kTogether; ++u) {
        rows[u] = -1;
        if (hits == 0) continue;
        const int from = __ffs(static_cast<int>(hits)) - 1;
        hits &= hits - 1;
        rows[u] = __shfl_sync(kWarp, local, from);
        weights[u] = __shfl_sync(kWarp, weight, from);
        const int64_t at = __shfl_sync(kWarp, static_cast<long long>(other), from);
        SIAM_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (dim(e) >= args.dim) continue;
          x[u][e] = element(args.own, first_row + rows[u], e);
          y[u][e] = element(args.other, at, e);
        }
      }
      SIAM_UNROLL
      for (int u = 0; u < kTogether; ++u) {
        if (rows[u] < 0) continue;
        SIAM_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (dim(e) >= args.dim) continue;
          const C own = static_cast<C>(math::widen(x[u][e]));
          const C far = static_cast<C>(math::widen(y[u][e]));
          const C before = sums[place(rows[u], e)];
          sums[place(rows[u], e)] = fused(weights[u], minus(own, far), before);
        }
      }
    }
  }

  // What the warp's rows have picked themselves.
  SIAM_DEVICE void add_own() const {
    const int local = warp * kWarpRows + lane / 2;
    const int64_t pick = 2 * (first_row + local) + lane % 2;
    int64_t other = -1;
    if (lane < 2 * kWarpRows && first_row + local < args.own.rows) {
      other = load<int64_t>(args.picked + pick);
    }
    add(other >= 0, local, pick, other);
  }

  // Who has picked the block's rows: all picks are read once, and those of the block listed in
  // order, as pick · kPickRows + row.
  SIAM_DEVICE void add_others(const Shared<int64_t>& list, const Shared<int>& counts) const {
    const unsigned lower = (1u << lane) - 1;
    int filled = 0;
    SIAM_NO_UNROLL
    for (int64_t base = 0; base < args.anchors; base += kPickLoads * kTileThreads) {
      Pack<int64_t, 2> local[kPickLoads];
      SIAM_UNROLL
      for (int u = 0; u < kPickLoads; ++u) {
        const int64_t anchor = base + u * kTileThreads + threadIdx.x;
        local[u] = {{-1, -1}};
        if (anchor < args.anchors) local[u] = load<Pack<int64_t, 2>>(args.picked + 2 * anchor);
      }
      int before[kPickLoads];
      unsigned hits = 0;  // of this thread
      SIAM_UNROLL
      for (int u = 0; u < kPickLoads; ++u) {
        before[u] = 0;
        int together = 0;
        SIAM_UNROLL
        for (int end = 0; end < 2; ++end) {
          local[u].element[end] -= first_row;
          const bool hit = local[u].element[end] >= 0 && local[u].element[end] < kPickRows;
          const unsigned lanes = __ballot_sync(kWarp, hit);
          before[u] += __popc(lanes & lower);
          together += __popc(lanes);
          if (hit) hits |= 1u << (2 * u + end);
        }
        if (lane == 0) counts[u * kTileWarps + warp] = together;
      }
      __syncthreads();
      SIAM_UNROLL
      for (int u = 0; u < kPickLoads; ++u) {
        int mine = filled + before[u];
        SIAM_UNROLL
        for (int w = 0; w < kTileWarps; ++w) {
          const int n = counts[u * kTileWarps + w];
          if (w < warp) mine += n;
          filled += n;
        }
        SIAM_UNROLL
        for (int end = 0; end < 2; ++end) {
          if ((hits >> (2 * u + end) & 1u) == 0) continue;
          const int64_t pick = 2 * (base + u * kTileThreads + threadIdx.x) + end;
          list[mine++] = pick * kPickRows + local[u].element[end];
        }
      }
      __syncthreads();
      const bool more = base + kPickLoads * kTileThreads < args.anchors;
      if (more && filled + kPickRound <= kPickList) continue;
      SIAM_NO_UNROLL
      for (int at = 0; at < filled; at += 32) {
        int64_t entry = -1;
        if (at + lane < filled) entry = list[at + lane];
        const int row = static_cast<int>(entry & (kPickRows - 1));
        const int64_t pick = entry / kPickRows;
        add(entry >= 0 && row / kWarpRows == warp, row, pick, pick / 2);
      }
      filled = 0;
      __syncthreads();
    }
  }

  SIAM_DEVICE void write(int local) const {
    const int64_t row = first_row + local;
    if (row >= args.own.rows) return;
    const C norm = load<C>(static_cast<const C*>(args.own.norms) + row);
    bool spoilt = false;
    if (args.spoilt != nullptr && norm != norm) {
      const double value = load<double>(args.spoilt + row);
      spoilt = value != value;
    }
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      const C sum = sums[place(local, e)];
      if (dim(e) < args.dim) {
        store(spoilt ? norm : sum, static_cast<C*>(args.out) + row * args.dim + dim(e));
      }
    }
  }
};

template <class T>
SIAM_KERNEL(kTileThreads, kPickBlocks)
void picks_kernel(const PicksArgs args) {
  using C = typename math::Storage<T>::Compute;
  SIAM_SHARED(C, sums, kPickRows * kGradientDims);
  SIAM_SHARED(int64_t, list, kPickList);
  SIAM_SHARED(int, counts, kPickLoads* kTileWarps);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t parts = (args.dim + kGradientDims - 1) / kGradientDims;
  const int64_t items = (args.own.rows + kPickRows - 1) / kPickRows * parts;
  SIAM_NO_UNROLL
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t group = item / parts;
    const PickedRows<T> rows{
        args, sums, group * kPickRows, (item - group * parts) * kGradientDims + lane, lane, warp};
    constexpr int kWarpRows = PickedRows<T>::kWarpRows;
    SIAM_UNROLL
    for (int k = 0; k < 4 * kWarpRows; ++k)
      sums[rows.place(warp * kWarpRows + k / 4, k % 4)] = C(0);
    if (args.of_anchors) rows.add_own();
    if (args.of_columns) rows.add_others(list, counts);
    SIAM_NO_UNROLL
    for (int r = 0; r < kWarpRows; ++r) rows.write(warp * kWarpRows + r);
  }
}

// --- a batch that meets itself -------------------------------------------------------------------

constexpr int kSymmetricSide = 32;
constexpr int kSymmetricBlocks = 4;  // an SM

// Adds to the weights of all rows those of the other direction, and to the mask its bits, so that
// one product gives what a row gets as an anchor and as a positive or negative.
template <class C>
SIAM_KERNEL(kTileThreads, kSymmetricBlocks)
void symmetric_kernel(const SymmetricArgs args) {
  constexpr int kStep = kSymmetricSide + 1;
  SIAM_SHARED(C, across, 2 * kSymmetricSide * kStep);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t n = args.rows, sides = (n + kSymmetricSide - 1) / kSymmetricSide;
  C* const weights = static_cast<C*>(args.weights);
  SIAM_NO_UNROLL
  for (int64_t item = blockIdx.x; item < sides * sides; item += gridDim.x) {
    const int64_t first = item / sides * kSymmetricSide, second = item % sides * kSymmetricSide;
    if (second < first) continue;
    // Tile 0 is at (first, second), tile 1 across the diagonal.
    const auto place = [&](int tile, int r) { return (tile * kSymmetricSide + r) * kStep; };
    const auto row_of = [&](int tile) { return tile == 0 ? first : second; };
    __syncthreads();  // the last tiles are no longer read
    SIAM_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      const int64_t row = row_of(tile), column = row_of(1 - tile) + lane;
      SIAM_UNROLL
      for (int r = warp; r < kSymmetricSide; r += kTileWarps) {
        across[place(tile, r) + lane] =
            row + r < n && column < n ? load<C>(weights + (row + r) * n + column) : C(0);
      }
    }
    __syncthreads();
    const auto store_tile = [&](int tile) {
      const int64_t row = row_of(tile), column = row_of(1 - tile) + lane;
      SIAM_UNROLL
      for (int r = warp; r < kSymmetricSide; r += kTileWarps) {
        const C own = across[place(tile, r) + lane], other = across[place(1 - tile, lane) + r];
        if (row + r < n && column < n) store(own + other, weights + (row + r) * n + column);
      }
    };
    store_tile(0);
    if (first != second) store_tile(1);
    if (warp != 0) continue;
    const auto word = [&](int tile) {  // of row `lane`
      return args.mask + (row_of(tile) + lane) * args.mask_words + row_of(1 - tile) / 32;
    };
    const unsigned bits = first + lane < n ? load<unsigned>(word(0)) : 0;
    const unsigned bits_across = second + lane < n ? load<unsigned>(word(1)) : 0;
    if (__ballot_sync(kWarp, (bits | bits_across) != 0) == 0) continue;
    unsigned both = bits, both_across = bits_across;
    SIAM_NO_UNROLL
    for (int r = 0; r < kSymmetricSide; ++r) {
      const unsigned turned = __ballot_sync(kWarp, (bits_across >> r & 1u) != 0);
      const unsigned turned_across = __ballot_sync(kWarp, (bits >> r & 1u) != 0);
      if (lane == r) {
        both |= turned;
        both_across |= turned_across;
      }
    }
    if (first + lane < n) store(both, word(0));
    if (first != second && second + lane < n) store(both_across, word(1));
  }
}

// --- launchers -----------------------------------------------------------------------------------

template <class C>
void launch_anchors_typed(const AnchorArgs& args, DType dtype, TileDevice device, Stream stream) {
  if (args.rows == 0) return;
  // A little wider than the engine's rule, since distances may be rounded.
  DirectRule<C> rule =
      direct_rule<C>(math::tile_engine(dtype, args.dim, device.capability), args.dim);
  rule.threshold = static_cast<C>(1.02) * rule.threshold;
  const auto aligned_to_16 = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool aligned = args.columns % 4 == 0 && aligned_to_16(args.distances) &&
                       aligned_to_16(args.column_labels) && aligned_to_16(args.weights) &&
                       (args.weights == nullptr || aligned_to_16(args.column_norms));
  const auto launch = [&](auto kind) {
    constexpr AnchorKind kKind = decltype(kind)::value;
    const int64_t resident = int64_t{std::max(device.multiprocessors, 1)} * anchor_blocks<C>(kKind);
    SIAM_LAUNCH((anchor_kernel<C, kKind>),
                Dim3(static_cast<unsigned>(std::min(args.rows, resident))), Dim3(kTileThreads), 0,
                stream, args, rule, aligned);
  };
  if (args.mining == Mining::kSemihard) {
    launch(std::integral_constant<AnchorKind, AnchorKind::kSemihard>());
  } else if (args.mining != Mining::kAll) {
    launch(std::integral_constant<AnchorKind, AnchorKind::kPick>());
  } else if (args.params.soft) {
    launch(std::integral_constant<AnchorKind, AnchorKind::kSoft>());
  } else {
    launch(std::integral_constant<AnchorKind, AnchorKind::kHinge>());
  }
}

template <class C>
void launch_symmetric_typed(const SymmetricArgs& args, TileDevice device, Stream stream) {
  const int64_t sides = (args.rows + kSymmetricSide - 1) / kSymmetricSide;
  if (sides == 0) return;
  const int64_t resident = int64_t{std::max(device.multiprocessors, 1)} * kSymmetricBlocks;
  SIAM_LAUNCH((symmetric_kernel<C>), Dim3(static_cast<unsigned>(std::min(sides * sides, resident))),
              Dim3(kTileThreads), 0, stream, args);
}

template <class T>
void launch_picks_typed(PicksArgs args, TileDevice device, Stream stream) {
  const int64_t parts = (args.dim + kGradientDims - 1) / kGradientDims;
  const int64_t items = (args.own.rows + kPickRows - 1) / kPickRows * parts;
  if (items == 0) return;
  args.own = without_idle_steps(args.own, 1);
  args.other = without_idle_steps(args.other, 1);
  const int64_t resident = int64_t{std::max(device.multiprocessors, 1)} * kPickBlocks;
  SIAM_LAUNCH((picks_kernel<T>), Dim3(static_cast<unsigned>(std::min(items, resident))),
              Dim3(kTileThreads), 0, stream, args);
}

}  // namespace siamcuda::cuda
