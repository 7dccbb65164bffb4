// Triplets of a batch: the rows of distances of a panel of anchors, mined or counted, become rows
// of weights, or two picks an anchor. Kernel text for nvcc and for the emulator.
//
//                    anchor_kernel                            picks_kernel
//   a block has      one anchor: its row of R distances       4 warps, each 128 dimensions of a row
//   registers        128                                      64
//   shared memory    18 KiB (float: 13): 512 positives        -
//   bytes            the row twice, and once more for each    picks of all anchors once a warp,
//   from
//                    512 positives; weights as often          L2; the rows that are picked
//   work             hard, easy: 1 comparison a pair. all:    1 comparison an anchor; 3 D FLOPs a
//                    a search among the sorted positives a    pick
//                    pair. soft, semihard: a term, or a
//                    comparison, a pair of them
//
// Positives are taken 512 at a time, in the order of their columns, so that any number of them
// fits. Counts are integers and do not depend on an order; sums run in one order. Who picked a row
// is found by reading all picks in order: B comparisons beside the B · D products of a row.
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

template <class C>
struct AnchorShared {
  Shared<double> warps;         // [4]
  Shared<double> total;         // [1]
  Shared<C> key;                // [kPositives]
  Shared<int64_t> column;       // [kPositives]
  Shared<C> slope;              // [kPositives]
  Shared<int> count;            // [kPositives + 1]
  Shared<int> warp_count;       // [4]
  Shared<C> best;               // [4]
  Shared<int64_t> best_column;  // [4]
};

template <class C>
struct AnchorRow {
  using Row = math::Triplet<math::SquaredDifference>;
  const AnchorArgs& args;
  const AnchorShared<C>& shared;
  int64_t row, label;
  int thread;
  const C* d2;
  C* weights;
  C upstream;
  double value = 0, active = 0, collapsed = 0, positive_sum = 0, negative_sum = 0;

  // --- the block ---------------------------------------------------------------------------------

  SIAM_DEVICE double all(double x) const {
    const double sum = add_block(x, shared.warps);
    if (thread == 0) shared.total[0] = sum;
    __syncthreads();
    const double result = shared.total[0];
    return result;
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

  SIAM_DEVICE bool same_class(int64_t c) const {
    return load<int64_t>(args.column_labels + c) == label;
  }
  SIAM_DEVICE C distance(int64_t c) const { return load<C>(d2 + c); }
  SIAM_DEVICE bool is_positive(int64_t c) const {
    return c < args.columns && c != row + args.self && same_class(c) && distance(c) == distance(c);
  }
  SIAM_DEVICE bool is_negative(int64_t c) const {
    return !same_class(c) && distance(c) == distance(c);
  }
  SIAM_DEVICE C unit(C squared) const {
    return args.params.squared ? squared : math::sqrt(squared);
  }
  SIAM_DEVICE C slope(C distance) const {
    return args.params.squared ? C(1) : distance == 0 ? C(0) : C(0.5) / distance;
  }
  template <class Visit>
  SIAM_DEVICE void each_negative(int first, int step, const Visit& visit) const {
    SIAM_NO_UNROLL
    for (int64_t c = first; c < args.columns; c += step) {
      if (is_negative(c)) visit(c, distance(c));
    }
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

  // The next positives from `cursor` on, at most kPositives, into `key` and `column`.
  SIAM_DEVICE int gather(int64_t& cursor) const {
    int found = 0;
    __syncthreads();  // the last ones are no longer read
    SIAM_NO_UNROLL
    for (; cursor < args.columns; cursor += kTileThreads) {
      const int64_t c = cursor + thread;
      const bool here = is_positive(c);
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
        shared.key[at] = distance(c);
        shared.column[at] = c;
      }
      found += together;
    }
    __syncthreads();
    return found;
  }

  // --- every triplet, by the hinge ---------------------------------------------------------------

  // By key, then by column; what is not there comes last.
  SIAM_DEVICE void sort(int count) const {
    int size = 1;
    while (size < count) size *= 2;
    for (int k = count + thread; k < size; k += kTileThreads) {
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
          const int low = pair / apart * 2 * apart + pair % apart, high = low + apart;
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

  // How many of `count` ascending keys are at most v.
  SIAM_DEVICE int up_to(int count, C v) const {
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      const C key = shared.key[middle];
      if (key <= v) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // Adds up; returns how many keys are infinite.
  SIAM_DEVICE int hinge(int count) {
    const C margin = static_cast<C>(args.params.margin);
    for (int k = thread; k < count; k += kTileThreads) {
      const C d = shared.key[k];
      shared.key[k] = unit(d) + margin;
    }
    for (int k = thread; k <= count; k += kTileThreads) shared.count[k] = 0;
    sort(count);
    each_negative(thread, kTileThreads, [&](int64_t c, C squared) {
      const C v = unit(squared);
      const int idle = up_to(count, v), times = count - idle;
      atomicAdd(shared.count + idle, 1);  // an integer: in any order
      if (times == 0) return;
      value -= static_cast<double>(times) * static_cast<double>(v);
      if (weights != nullptr) store(load<C>(weights + c) + static_cast<C>(times), weights + c);
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
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(kWarp, upto, offset);
      if (thread % 32 >= offset) upto += other;
    }
    if (thread % 32 == 31) shared.warp_count[thread / 32] = upto;
    __syncthreads();
    int times = upto - sum;
    for (int w = 0; w < thread / 32; ++w) {
      const int n = shared.warp_count[w];
      times += n;
    }
    int infinite = 0;
    for (int k = thread * run; k < (thread + 1) * run && k < count; ++k) {
      const int n = shared.count[k];
      const C key = shared.key[k];
      const int64_t c = shared.column[k];
      times += n;
      infinite += !is_finite(key);
      active += times;
      if (times != 0) value += static_cast<double>(times) * static_cast<double>(key);
      if (weights != nullptr) {
        store(upstream * static_cast<C>(times) * slope(unit(distance(c))), weights + c);
      }
    }
    return infinite;
  }

  // --- every triplet, by softplus ----------------------------------------------------------------

  SIAM_DEVICE void soft(int count) {
    each_negative(thread, kTileThreads, [&](int64_t c, C negative) {
      C sum = 0;
      for (int k = 0; k < count; ++k) {
        const C positive = shared.key[k];
        const auto t = term(positive, negative);
        value += t.value;
        active += t.value != 0;
        sum = sum + t.slope[1];
      }
      if (weights != nullptr) store(load<C>(weights + c) + sum, weights + c);
    });
    if (weights == nullptr) return;
    SIAM_NO_UNROLL
    for (int k = thread / 32; k < count; k += kTileWarps) {
      const C positive = shared.key[k];
      double sum = 0;
      each_negative(thread % 32, 32,
                    [&](int64_t, C negative) { sum += term(positive, negative).slope[0]; });
      for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWarp, sum, offset);
      const int64_t c = shared.column[k];
      if (thread % 32 == 0) store(upstream * static_cast<C>(sum), weights + c);
    }
  }

  // --- each positive with one negative -----------------------------------------------------------

  SIAM_DEVICE void semihard(int count, const Best<C>& farthest) {
    SIAM_NO_UNROLL
    for (int k = thread / 32; k < count; k += kTileWarps) {
      const C positive = shared.key[k];
      Best<C> near{C(0), -1};
      if (positive < farthest.value) {  // nothing is farther than the farthest
        each_negative(thread % 32, 32, [&](int64_t c, C v) {
          if (v > positive) near.take(v, c, false);
        });
        near.meet_warp(false);
      }
      if (near.column < 0) near = farthest;
      const auto t = term(positive, near.value);
      if (thread % 32 != 0) continue;
      count_term(positive, near.value, t.value);
      if (weights == nullptr) continue;
      const int64_t c = shared.column[k];
      store(upstream * t.slope[0], weights + c);
      shared.slope[k] = t.slope[1];
      shared.column[k] = near.column;
    }
    if (weights == nullptr) return;
    __syncthreads();
    // Several positives may share a negative; one thread adds what they give it, in order.
    for (int k = 0; k < count; ++k) {
      const int64_t c = shared.column[k];
      if (c % kTileThreads != thread) continue;
      const C s = shared.slope[k];
      store(load<C>(weights + c) + upstream * s, weights + c);
    }
  }

  // --- an anchor ---------------------------------------------------------------------------------

  SIAM_DEVICE void finish(double terms, double pairs) {
    const double sums[5] = {value, active, collapsed, positive_sum, negative_sum};
    double found[5];
    SIAM_UNROLL
    for (int k = 0; k < 5; ++k) found[k] = add_block(sums[k], shared.warps);
    if (thread != 0) return;
    store(found[0], args.values + row);
    int64_t* const counts = args.counts + row * kAnchorCounts;
    store(static_cast<int64_t>(terms), counts);
    store(static_cast<int64_t>(found[1]), counts + 1);
    store(static_cast<int64_t>(found[2]), counts + 2);
    store(static_cast<int64_t>(pairs), counts + 3);
    store(found[3], args.distance_sums + 2 * row);
    store(found[4], args.distance_sums + 2 * row + 1);
  }

  SIAM_DEVICE void pick(const Best<C>& positive, const Best<C>& negative) {
    const bool there = positive.column >= 0 && negative.column >= 0;
    if (thread == 0) {
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
    }
    finish(there, there);
  }

  SIAM_DEVICE void run() {
    const bool mined = args.mining == Mining::kHard || args.mining == Mining::kEasyPositive;
    const bool hard = args.mining == Mining::kHard;
    double same = 0, positives = 0, negatives = 0, zeros = 0, infinite = 0;
    double of_positives = 0, of_negatives = 0;
    Best<C> positive{C(0), -1}, near{C(0), -1}, far{C(0), -1};
    SIAM_NO_UNROLL
    for (int64_t c = thread; c < args.columns; c += kTileThreads) {
      if (weights != nullptr) store(C(0), weights + c);
      const C v = distance(c);
      if (same_class(c)) {
        same += 1;
        if (c == row + args.self || v != v) continue;
        positives += 1;
        of_positives += unit(v);
        positive.take(v, c, hard);
      } else if (v == v) {
        negatives += 1;
        zeros += v == 0;
        infinite += !is_finite(v);
        of_negatives += unit(v);
        near.take(v, c, false);
        far.take(v, c, true);
      }
    }
    const C norm = load<C>(static_cast<const C*>(args.norms) + row);
    if (norm != norm) {  // its terms count by label alone, and are NaN
      same = all(same);
      const bool self = row + args.self >= 0 && row + args.self < args.columns;
      const double left = same - self, others = static_cast<double>(args.columns) - same;
      double terms = left > 0 && others > 0 ? 1 : 0;
      if (args.mining == Mining::kSemihard) terms *= left;
      if (args.mining == Mining::kAll) terms *= left * others;
      if (thread == 0 && terms > 0) {
        value = norm;
        active = terms;
      }
      if (mined && thread < 2) store(int64_t{-1}, args.picked + 2 * row + thread);
      return finish(terms, 0);
    }
    if (mined) return pick(all(positive, hard), all(near, false));

    positives = all(positives);
    negatives = all(negatives);
    const double terms = args.mining == Mining::kAll ? positives * negatives
                         : negatives > 0             ? positives
                                                     : 0;
    if (terms == 0) return finish(0, 0);
    const bool semihard_wanted = args.mining == Mining::kSemihard;
    const bool soft_wanted = args.params.soft;
    const Best<C> farthest = all(far, true);
    int infinite_keys = 0;
    SIAM_NO_UNROLL
    for (int64_t cursor = 0; cursor < args.columns;) {
      const int count = gather(cursor);
      if (count == 0) continue;
      if (semihard_wanted) {
        semihard(count, farthest);
      } else if (soft_wanted) {
        soft(count);
      } else {
        infinite_keys += hinge(count);
      }
    }
    if (semihard_wanted) return finish(terms, terms);
    collapsed = zeros * positives;
    positive_sum = of_positives * negatives;
    negative_sum = of_negatives * positives;
    if (!soft_wanted) {
      // inf + margin − inf is NaN, which counts as active so that it is seen.
      const double keys = all(static_cast<double>(infinite_keys)), spread = all(infinite);
      if (thread == 0 && keys > 0 && spread > 0) {
        active += keys * spread;
        value = math::bit_cast<float>(0x7fc00000u);
      }
    }
    if (weights != nullptr) {
      each_negative(thread, kTileThreads, [&](int64_t c, C squared) {
        const C w = load<C>(weights + c);
        const C each = soft_wanted ? upstream : -upstream * slope(unit(squared));
        store(w != 0 ? w * each : C(0), weights + c);
      });
    }
    finish(terms, terms);
  }
};

template <class C>
SIAM_KERNEL(kTileThreads, 4)
void anchor_kernel(const AnchorArgs args) {
  SIAM_SHARED(double, warps, kTileWarps);
  SIAM_SHARED(double, total, 1);
  SIAM_SHARED(C, key, kPositives);
  SIAM_SHARED(int64_t, column, kPositives);
  SIAM_SHARED(C, slope, kPositives);
  SIAM_SHARED(int, count, kPositives + 1);
  SIAM_SHARED(int, warp_count, kTileWarps);
  SIAM_SHARED(C, best, kTileWarps);
  SIAM_SHARED(int64_t, best_column, kTileWarps);
  const AnchorShared<C> shared{warps, total,      key,  column,     slope,
                               count, warp_count, best, best_column};
  SIAM_NO_UNROLL
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    AnchorRow<C> anchor{
        args,
        shared,
        row,
        load<int64_t>(args.row_labels + row),
        static_cast<int>(threadIdx.x),
        static_cast<const C*>(args.distances) + row * args.columns,
        args.weights == nullptr ? nullptr : static_cast<C*>(args.weights) + row * args.columns,
        args.upstream == nullptr ? C(1) : load<C>(static_cast<const C*>(args.upstream) + row)};
    anchor.run();
  }
}

// --- gradients of picks --------------------------------------------------------------------------

template <class T>
SIAM_KERNEL(kTileThreads, (sizeof(T) == 8 ? 6 : 8))
void picks_kernel(const PicksArgs args) {
  using C = typename math::Storage<T>::Compute;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t parts = (args.dim + kGradientDims - 1) / kGradientDims;
  const auto element = [](const TileMatrix& m, int64_t r, int64_t d) {
    return static_cast<C>(math::widen(load<T>(static_cast<const T*>(m.data) + r * m.row_step + d)));
  };
  for (int64_t item = blockIdx.x * int64_t{kTileWarps} + warp; item < args.own.rows * parts;
       item += gridDim.x * int64_t{kTileWarps}) {
    const int64_t row = item / parts, first = (item - row * parts) * kGradientDims + lane;
    const C norm = load<C>(static_cast<const C*>(args.own.norms) + row);
    C x[4], sum[4];
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      sum[e] = 0;
      x[e] = first + 32 * e < args.dim ? element(args.own, row, first + 32 * e) : C(0);
    }
    const auto add = [&](int64_t pick, int64_t other) {
      const C weight = 2 * load<C>(static_cast<const C*>(args.picked_weights) + pick);
      const C far = load<C>(static_cast<const C*>(args.other.norms) + other);
      if (weight == 0 || (is_finite(norm) && !is_finite(far))) return;
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int64_t d = first + 32 * e;
        if (d < args.dim)
          sum[e] = fused(weight, minus(x[e], element(args.other, other, d)), sum[e]);
      }
    };
    if (args.of_anchors) {
      for (int end = 0; end < 2; ++end) {
        const int64_t column = load<int64_t>(args.picked + 2 * row + end);
        if (column >= 0) add(2 * row + end, column);
      }
    }
    if (args.of_columns) {
      SIAM_NO_UNROLL
      for (int64_t base = 0; base < 2 * args.anchors; base += 32) {
        const int64_t at = base + lane;
        unsigned hits =
            __ballot_sync(kWarp, at < 2 * args.anchors && load<int64_t>(args.picked + at) == row);
        SIAM_NO_UNROLL
        while (hits != 0) {
          const int bit = __ffs(static_cast<int>(hits)) - 1;
          hits &= hits - 1;
          add(base + bit, (base + bit) / 2);
        }
      }
    }
    if (args.spoilt != nullptr && norm != norm) {
      const double value = load<double>(args.spoilt + row);
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) sum[e] = value != value ? norm : sum[e];
    }
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int64_t d = first + 32 * e;
      if (d < args.dim) store(sum[e], static_cast<C*>(args.out) + row * args.dim + d);
    }
  }
}

// --- launchers -----------------------------------------------------------------------------------

template <class C>
void launch_anchors_typed(const AnchorArgs& args, TileDevice device, Stream stream) {
  if (args.rows == 0) return;
  const int64_t resident = static_cast<int64_t>(std::max(device.multiprocessors, 1)) * 8;
  SIAM_LAUNCH((anchor_kernel<C>), Dim3(static_cast<unsigned>(std::min(args.rows, resident))),
              Dim3(kTileThreads), 0, stream, args);
}

template <class T>
void launch_picks_typed(PicksArgs args, TileDevice device, Stream stream) {
  const int64_t parts = (args.dim + kGradientDims - 1) / kGradientDims;
  if (args.own.rows * parts == 0) return;
  args.own = without_idle_steps(args.own, 1);
  args.other = without_idle_steps(args.other, 1);
  SIAM_LAUNCH((picks_kernel<T>), Dim3(warp_grid(args.own.rows * parts, device.multiprocessors)),
              Dim3(kTileThreads), 0, stream, args);
}

}  // namespace siamcuda::cuda
