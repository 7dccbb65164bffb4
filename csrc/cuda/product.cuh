// Gradients from weights: the product of a panel of weights with the rows at the other end of its
// pairs, and what a product can't do. Kernel text for nvcc and for the emulator.
//
//   d/dx[r] Σ_k w[r, k] |x[r] - y[k]|² = 2 ((Σ_k w[r, k]) x[r] - Σ_k w[r, k] y[k])
//
// Where two rows are nearly equal both terms are large and their difference is rounding, so such
// pairs (math/tiles.h) have a bit in a mask, stay out of both sums, and get w (x - y) directly.
//
//                    mask_kernel       product_kernel              gradient_kernel
//   a block has      4 runs of words   64 rows x 128 dimensions    4 warps, each 128 dimensions
//                                      (signs, double: 64) of one  of one row
//                                      split of the sum
//   per thread       8 (double: 4)     8 x 8, or 8 x 4             4 dimensions
//   stages           -                 2 of 16 (double: 8) terms   -
//   registers        64                230 (signs 200, double 255) 64 (double: 80)
//   shared memory    -                 25 KiB                      -
//   blocks an SM     8                 2                           8 (double: 6)
//   bytes            distances once,   weights once per 128        partial sums, x and the gradient
//                    1 bit a pair      dimensions, y once per 64   once, a mask once per 128
//                                      rows, partial sums once     dimensions
//   FLOPs            3 a pair          2 a term and dimension      2 a split; 3 D a direct pair
//                                      (signs: 4)
//
// A sum is split where there are too few outputs to fill a GPU; the splits are added in order. How
// many there are depends on the shape alone. Every sum runs in one order.
#pragma once

#include "cuda/batch_launch.h"
#include "cuda/tiles.cuh"

namespace siamcuda::cuda {

template <class C>
SIAM_DEVICE bool is_finite(C x) {
  return x - x == 0;
}

// --- which pairs are direct ----------------------------------------------------------------------

// Words, all of whose loads are on their way together.
template <class Out>
constexpr int kMaskRun = sizeof(Out) == 8 ? 4 : 8;

template <class Out>
SIAM_KERNEL(kTileThreads, 8)
void mask_kernel(const MaskArgs args, const DirectRule<typename math::Storage<Out>::Compute> rule) {
  using C = typename math::Storage<Out>::Compute;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kRun = kMaskRun<Out>;
  const int64_t runs = (args.words + kRun - 1) / kRun;
  const int64_t total = args.batch * args.rows * runs;
  for (int64_t item = blockIdx.x * int64_t{kTileWarps} + warp; item < total;
       item += gridDim.x * int64_t{kTileWarps}) {
    const int64_t line = item / runs;  // of all batches
    const int64_t word = (item - line * runs) * kRun, column = word * 32 + lane;
    const int64_t batch = args.batch > 1 ? line / args.rows : 0;
    const Out* const distances =
        static_cast<const Out*>(args.distances) + line * args.columns + column;
    const C* const norms2 = static_cast<const C*>(args.norms2) + batch * args.columns + column;
    const C norm1 = load<C>(static_cast<const C*>(args.norms1) + line);
    const int64_t left = args.columns - column;
    Out d2[kRun]{};
    C norm2[kRun]{};
    const auto fetch = [&](int end) {
      SIAM_UNROLL
      for (int u = 0; u < kRun; ++u) {
        if (u * 32 >= end) continue;
        d2[u] = load<Out>(distances + u * 32);
        norm2[u] = load<C>(norms2 + u * 32);
      }
    };
    if (left >= kRun * 32) {
      fetch(kRun * 32);
    } else {
      fetch(static_cast<int>(left));
    }
    unsigned own = 0;  // word number `lane`
    SIAM_UNROLL
    for (int u = 0; u < kRun; ++u) {
      const bool direct = math::needs_direct(static_cast<C>(math::widen(d2[u])), norm1 + norm2[u],
                                             rule.threshold, rule.smallest, rule.largest);
      const unsigned bits = __ballot_sync(kWarp, direct);
      if (lane == u) own = bits;
    }
    if (lane < kRun && word + lane < args.words) {
      const int64_t valid = args.columns - (word + lane) * 32;
      if (valid < 32) own &= (1u << valid) - 1;
      store(own, args.mask + line * args.words + word + lane);
    }
  }
}

// --- products ------------------------------------------------------------------------------------

template <class C>
constexpr int kProductDepth = 64 / static_cast<int>(sizeof(C));  // terms of a stage
constexpr int kWeightStep = kProductRows + 16 / 4;               // between terms, in shared memory

// Dimensions of a block: signs keep x in registers besides the sums, and a double takes two.
template <class C, bool kSigns>
constexpr int kProductDims = product_dims(kSigns || sizeof(C) == 8);

// Four neighbours; zeros from `count` on.
template <class C, class T>
SIAM_DEVICE Pack<C, 4> load_four(const T* from, int64_t count, bool aligned) {
  constexpr int kAccess = sizeof(T) == 8 ? 2 : 4;
  Pack<C, 4> four{};
  if (aligned && count >= 4) {
    SIAM_UNROLL
    for (int e = 0; e < 4; e += kAccess) {
      const auto part = load<Pack<T, kAccess>>(from + e);
      SIAM_UNROLL
      for (int k = 0; k < kAccess; ++k) four.element[e + k] = math::widen(part.element[k]);
    }
    return four;
  }
  SIAM_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (e < count) four.element[e] = math::widen(load<T>(from + e));
  }
  return four;
}

template <class C>
SIAM_DEVICE void store_four(const Pack<C, 4>& four, C* to, int64_t count, bool aligned) {
  constexpr int kAccess = 16 / sizeof(C);
  if (aligned && count >= 4) {
    SIAM_UNROLL
    for (int e = 0; e < 4; e += kAccess) {
      Pack<C, kAccess> part;
      SIAM_UNROLL
      for (int k = 0; k < kAccess; ++k) part.element[k] = four.element[e + k];
      store(part, to + e);
    }
    return;
  }
  SIAM_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (e < count) store(four.element[e], to + e);
  }
}

// Four neighbours in shared memory.
template <class C>
SIAM_DEVICE void load_shared_four(const Shared<C>& from, int at, C* to) {
  constexpr int kAccess = 16 / sizeof(C);
  SIAM_UNROLL
  for (int e = 0; e < 4; e += kAccess) {
    const auto part = load_shared<Pack<C, kAccess>>(from, at + e);
    SIAM_UNROLL
    for (int k = 0; k < kAccess; ++k) to[e + k] = part.element[k];
  }
}
template <class C>
SIAM_DEVICE void store_shared_four(const Pack<C, 4>& four, const Shared<C>& to, int at) {
  constexpr int kAccess = 16 / sizeof(C);
  SIAM_UNROLL
  for (int e = 0; e < 4; e += kAccess) {
    Pack<C, kAccess> part;
    SIAM_UNROLL
    for (int k = 0; k < kAccess; ++k) part.element[k] = four.element[e + k];
    store_shared(part, to, at + e);
  }
}

struct ProductAligned {
  bool weights, rows, outputs;
};

// What a block works on: the terms [begin, end) of the sums of some rows and dimensions.
struct ProductPlace {
  int64_t batch, split, row, dim, begin, end;
};
template <int kDims>
SIAM_DEVICE ProductPlace product_place(const ProductArgs& args, const ProductLaunch& launch,
                                       int64_t tile) {
  ProductPlace place;
  const int64_t column = tile / launch.dim_tiles;
  place.dim = (tile - column * launch.dim_tiles) * kDims;
  const int64_t rest = column / launch.row_tiles;
  place.row = (column - rest * launch.row_tiles) * kProductRows;
  place.batch = rest / launch.splits;
  place.split = rest - place.batch * launch.splits;
  place.begin = place.split * launch.split_depth;
  place.end = place.begin + launch.split_depth;
  if (place.end > args.y.rows) place.end = args.y.rows;
  return place;
}

// The stages in a thread's hands on their way to shared memory.
template <class T, bool kSigns>
struct ProductFetch {
  using C = typename math::Storage<T>::Compute;
  static constexpr int kDepth = kProductDepth<C>;
  static constexpr int kWeights = kProductRows * kDepth / 4 / kTileThreads;
  static constexpr int kDims = kProductDims<C, kSigns>;
  static constexpr int kValues = kDims * kDepth / 4 / kTileThreads;
  Pack<C, 4> weight[kWeights];
  Pack<C, 4> value[kValues];

  // Panel row p and its columns from c on, of the quad that this thread takes.
  SIAM_DEVICE static void quad(bool transposed, int q, int& term, int& row) {
    term = transposed ? q / (kProductRows / 4) : q % (kDepth / 4) * 4;
    row = transposed ? q % (kProductRows / 4) * 4 : q / (kDepth / 4);
  }

  SIAM_DEVICE void load(const ProductArgs& args, const ProductPlace& place, int64_t first,
                        const ProductAligned& aligned) {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t panel_rows = args.transposed ? args.y.rows : args.x.rows;
    const int64_t panel_columns = args.transposed ? args.x.rows : args.y.rows;
    SIAM_UNROLL
    for (int u = 0; u < kWeights; ++u) {
      int term, row;
      quad(args.transposed, thread + u * kTileThreads, term, row);
      const int64_t k = first + term, r = place.row + row;
      const int64_t p = args.transposed ? k : r, c = args.transposed ? r : k;
      const int64_t p_end = args.transposed ? place.end : args.x.rows;
      const int64_t c_end = args.transposed ? args.x.rows : place.end;
      const int64_t line = place.batch * panel_rows + p;
      weight[u] = load_four<C>(static_cast<const C*>(args.weights) + line * panel_columns + c,
                               p < p_end ? c_end - c : 0, aligned.weights);
      if (args.mask == nullptr || p >= p_end || c >= c_end) continue;
      const unsigned bits =
          cuda::load<unsigned>(args.mask + line * args.mask_words + c / 32) >> (c % 32);
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        if ((bits >> e & 1u) != 0) weight[u].element[e] = 0;
      }
    }
    SIAM_UNROLL
    for (int u = 0; u < kValues; ++u) {
      const int q = thread + u * kTileThreads;
      const int64_t k = first + q / (kDims / 4);
      const int64_t d = place.dim + q % (kDims / 4) * 4;
      value[u] = Pack<C, 4>{};
      if (k >= place.end || d >= args.dim) continue;
      // Its pairs are all direct, and zero times what it holds would be NaN.
      if (!is_finite(
              cuda::load<C>(static_cast<const C*>(args.y.norms) + place.batch * args.y.rows + k))) {
        continue;
      }
      value[u] = load_four<C>(static_cast<const T*>(args.y.data) + place.batch * args.y.batch_step +
                                  k * args.y.row_step + d,
                              args.dim - d, aligned.rows);
    }
  }

  SIAM_DEVICE void keep(bool transposed, const Shared<C>& weights, const Shared<C>& values) const {
    const int thread = static_cast<int>(threadIdx.x);
    SIAM_UNROLL
    for (int u = 0; u < kWeights; ++u) {
      int term, row;
      quad(transposed, thread + u * kTileThreads, term, row);
      if (transposed) {
        store_shared_four(weight[u], weights, term * kWeightStep + row);
      } else {
        SIAM_UNROLL
        for (int e = 0; e < 4; ++e) {
          store_shared(weight[u].element[e], weights, (term + e) * kWeightStep + row);
        }
      }
    }
    SIAM_UNROLL
    for (int u = 0; u < kValues; ++u) {
      store_shared_four(value[u], values, (thread + u * kTileThreads) * 4);
    }
  }
};

// A thread's rows are 4 and 4 in a run, 32 apart; its dimensions 4 and 4, 64 apart.
SIAM_DEVICE int product_row(int thread, int i) { return i / 4 * 32 + thread / 16 * 4 + i % 4; }
SIAM_DEVICE int product_dim(int thread, int j) { return j / 4 * 64 + thread % 16 * 4 + j % 4; }

template <class T, bool kSigns>
SIAM_KERNEL(kTileThreads, 2)
void product_kernel(const ProductArgs args, const ProductLaunch launch,
                    const ProductAligned aligned) {
  using C = typename math::Storage<T>::Compute;
  constexpr int kDepth = kProductDepth<C>;
  constexpr int kWeightsOfStage = kDepth * kWeightStep;
  constexpr int kDims = kProductDims<C, kSigns>, kValuesOfStage = kDepth * kDims;
  constexpr int kTerms = kSigns && sizeof(C) == 8 ? 1 : 4;
  SIAM_SHARED(C, weights, 2 * kWeightsOfStage);
  SIAM_SHARED(C, values, 2 * kValuesOfStage);
  SIAM_SHARED(double, halves, kProductRows);
  const int thread = static_cast<int>(threadIdx.x);
  SIAM_NO_UNROLL
  for (int64_t tile = blockIdx.x; tile < launch.tiles; tile += gridDim.x) {
    const ProductPlace place = product_place<kDims>(args, launch, tile);
    constexpr int kColumns = kDims / 16;
    C total[8][kColumns], own[kSigns ? 8 : 1][kSigns ? kColumns : 1];
    SIAM_UNROLL
    for (int i = 0; i < 8; ++i) {
      SIAM_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        total[i][j] = 0;
        if constexpr (kSigns) {
          const int64_t r = place.row + product_row(thread, i);
          const int64_t d = place.dim + product_dim(thread, j);
          own[i][j] = r < args.x.rows && d < args.dim
                          ? static_cast<C>(math::widen(load<T>(static_cast<const T*>(args.x.data) +
                                                               place.batch * args.x.batch_step +
                                                               r * args.x.row_step + d)))
                          : C(0);
        }
      }
    }
    double weight_sum = 0;  // of row thread mod 64, half of the terms of every stage
    ProductFetch<T, kSigns> fetch;
    fetch.load(args, place, place.begin, aligned);
    __syncthreads();  // the last tile's stages are no longer read
    fetch.keep(args.transposed, weights + 0, values + 0);
    int now = 0;
    SIAM_NO_UNROLL
    for (int64_t first = place.begin; first < place.end; first += kDepth) {
      __syncthreads();
      const bool more = first + kDepth < place.end;
      if (more) fetch.load(args, place, first + kDepth, aligned);
      const auto stage_weights = weights + now * kWeightsOfStage;
      const auto stage_values = values + now * kValuesOfStage;
      SIAM_NO_UNROLL  // read ahead, more terms would not find registers
          for (int at = 0; at < kDepth; at += kTerms) {
        SIAM_UNROLL
        for (int k = at; k < at + kTerms; ++k) {
          C w[8], y[kColumns];
          SIAM_UNROLL
          for (int h = 0; h < 8; h += 4) {
            load_shared_four(stage_weights, k * kWeightStep + product_row(thread, h), w + h);
          }
          SIAM_UNROLL
          for (int h = 0; h < kColumns; h += 4) {
            load_shared_four(stage_values, k * kDims + product_dim(thread, h), y + h);
          }
          SIAM_UNROLL
          for (int i = 0; i < 8; ++i) {
            SIAM_UNROLL
            for (int j = 0; j < kColumns; ++j) {
              if constexpr (kSigns) {
                // Two comparisons and two predicated additions; one choice of three would branch.
                if (own[i][j] > y[j]) total[i][j] = total[i][j] + w[i];
                if (own[i][j] < y[j]) total[i][j] = total[i][j] - w[i];
              } else {
                total[i][j] = fused(w[i], y[j], total[i][j]);
              }
            }
          }
        }
      }
      if (!kSigns && place.dim == 0) {
        C sum = 0;
        SIAM_UNROLL
        for (int k = 0; k < kDepth / 2; ++k) {
          sum = sum + load_shared<C>(stage_weights,
                                     (thread / kProductRows * (kDepth / 2) + k) * kWeightStep +
                                         thread % kProductRows);
        }
        weight_sum += sum;
      }
      now = 1 - now;
      // The other stage was last read before the barrier above.
      if (more) {
        fetch.keep(args.transposed, weights + now * kWeightsOfStage, values + now * kValuesOfStage);
      }
    }
    const int64_t line = (place.batch * launch.splits + place.split) * args.x.rows;
    if (!kSigns && place.dim == 0) {
      if (thread >= kProductRows) halves[thread - kProductRows] = weight_sum;
      __syncthreads();
      const int64_t r = place.row + thread;
      if (thread < kProductRows && r < args.x.rows) {
        const double other = halves[thread];
        store(weight_sum + other, args.sums + line + r);
      }
    }
    C* const partials = static_cast<C*>(args.partials);
    SIAM_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int64_t r = place.row + product_row(thread, i);
      if (r >= args.x.rows) continue;
      SIAM_UNROLL
      for (int j = 0; j < kColumns; j += 4) {
        const int64_t d = place.dim + product_dim(thread, j);
        C* const to = partials + (line + r) * args.dim + d;
        if (aligned.outputs && d + 4 <= args.dim) {
          constexpr int kAccess = 16 / sizeof(C);
          SIAM_UNROLL
          for (int e = 0; e < 4; e += kAccess) {
            Pack<C, kAccess> part;
            SIAM_UNROLL
            for (int k = 0; k < kAccess; ++k) part.element[k] = total[i][j + e + k];
            store(part, to + e);
          }
          continue;
        }
        SIAM_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (d + e < args.dim) store(total[i][j + e], to + e);
        }
      }
    }
  }
}

// --- rows of the gradient ------------------------------------------------------------------------

// What one warp adds to 128 dimensions of one row; a lane has four neighbours.
constexpr int kGradientDims = 4 * 32;
template <class T>
constexpr int kSplitsTogether = sizeof(T) == 4 ? 4 : 2;  // whose loads are on their way together

// Loads and stores of four neighbours find out for themselves: that takes no register between.
template <class T>
SIAM_DEVICE bool aligned_to_access(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) == 8 ? 16 : 4 * sizeof(T)) == 0;
}
template <class C, class T>
SIAM_DEVICE Pack<C, 4> load_four(const T* from, int64_t count) {
  return load_four<C>(from, count, aligned_to_access(from));
}

template <class T>
struct GradientRow {
  using C = typename math::Storage<T>::Compute;
  const ProductArgs& args;
  int64_t batch, row, dim;
  int count;  // of the lane's dimensions that there are; not above 4
  Pack<C, 4> x, sum;

  SIAM_DEVICE static const T* at(const TileMatrix& m, int64_t b, int64_t r, int64_t d) {
    return static_cast<const T*>(m.data) + b * m.batch_step + r * m.row_step + d;
  }

  SIAM_DEVICE void add_direct(int64_t k, bool own_finite) {
    const int64_t panel_columns = args.transposed ? args.x.rows : args.y.rows;
    const int64_t panel_rows = args.transposed ? args.y.rows : args.x.rows;
    const int64_t p = args.transposed ? k : row, c = args.transposed ? row : k;
    const C weight =
        load<C>(static_cast<const C*>(args.weights) + (batch * panel_rows + p) * panel_columns + c);
    if (!args.every_pair) {
      const C norm = load<C>(static_cast<const C*>(args.y.norms) + batch * args.y.rows + k);
      if (weight == 0 || (own_finite && !is_finite(norm))) return;
    }
    const auto y = load_four<C>(at(args.y, batch, k, dim), count);
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) {
      sum.element[e] = fused(2 * weight, minus(x.element[e], y.element[e]), sum.element[e]);
    }
  }

  // In which of 32 tiles of terms from `tile` on a pair of the row may have a bit; transposed.
  SIAM_DEVICE unsigned near_tiles(int64_t tile) const {
    const int64_t down = (args.y.rows + kTileRows - 1) / kTileRows;
    const int64_t across = (args.x.rows + kTileColumns - 1) / kTileColumns;
    const int64_t t = tile + static_cast<int>(threadIdx.x) % 32;
    const bool near =
        t < down && load<int>(args.near + (batch * down + t) * across + row / kTileColumns) != 0;
    return __ballot_sync(kWarp, near);
  }

  // Pairs with a bit in the mask, in order.
  SIAM_DEVICE void add_masked(bool own_finite) {
    constexpr int kGroups = kTileRows / 32;  // of a tile
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t groups = (args.y.rows + 31) / 32;
    unsigned tiles = 0;
    SIAM_NO_UNROLL
    for (int64_t g = 0; g < groups; g += args.transposed ? 1 : 32) {
      unsigned word = 0, owners;
      if (args.transposed) {
        if (g % (32 * kGroups) == 0) tiles = near_tiles(g / kGroups);
        if (tiles == 0) g += 32 * kGroups - 1;  // on to the next 32
        if ((tiles >> (g / kGroups % 32) & 1u) == 0) continue;
        const int64_t k = g * 32 + lane;
        const bool bit =
            k < args.y.rows &&
            (load<unsigned>(args.mask + (batch * args.y.rows + k) * args.mask_words + row / 32) >>
                 (row % 32) &
             1u) != 0;
        word = __ballot_sync(kWarp, bit);
        owners = word != 0 ? 1u : 0u;
      } else {
        if (g + lane < groups) {
          word =
              load<unsigned>(args.mask + (batch * args.x.rows + row) * args.mask_words + g + lane);
        }
        owners = __ballot_sync(kWarp, word != 0);
      }
      SIAM_NO_UNROLL
      while (owners != 0) {
        const int owner = __ffs(static_cast<int>(owners)) - 1;
        owners &= owners - 1;
        unsigned bits = __shfl_sync(kWarp, word, owner);
        SIAM_NO_UNROLL
        while (bits != 0) {
          const int bit = __ffs(static_cast<int>(bits)) - 1;
          bits &= bits - 1;
          add_direct((g + owner) * 32 + bit, own_finite);
        }
      }
    }
  }
};

template <class T>
SIAM_KERNEL(kTileThreads, (sizeof(T) == 8 ? 6 : 8))
void gradient_kernel(const ProductArgs args, const int64_t splits) {
  using C = typename math::Storage<T>::Compute;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t parts = (args.dim + kGradientDims - 1) / kGradientDims;
  const int64_t total = args.batch * args.x.rows * parts;
  constexpr int kTogether = kSplitsTogether<T>;
  for (int64_t item = blockIdx.x * int64_t{kTileWarps} + warp; item < total;
       item += gridDim.x * int64_t{kTileWarps}) {
    const int64_t line = item / parts, batch = line / args.x.rows;
    const int64_t row = line - batch * args.x.rows;
    const int64_t dim = (item - line * parts) * kGradientDims + 4 * lane;
    const int64_t left = args.dim - dim;
    const int count = left < 4 ? static_cast<int>(left) : 4;
    GradientRow<T> r{args, batch, row, dim, count, {}, {}};
    const C norm = load<C>(static_cast<const C*>(args.x.norms) + line);
    const bool finite = is_finite(norm);
    r.x = load_four<C>(r.at(args.x, batch, row, dim), count);
    double weight = 0;
    const int64_t first = batch * splits * args.x.rows + row, step = args.x.rows * args.dim;
    const double* sums = args.sums + first;
    const C* partials = static_cast<const C*>(args.partials) + first * args.dim + dim;
    const bool aligned = args.dim % 4 == 0 && aligned_to_access(partials);
    SIAM_NO_UNROLL
    for (int rest = static_cast<int>(splits); rest > 0; rest -= kTogether) {
      // Behind the last split there are zeros to add: no sum of these is -0, so they change none.
      Pack<C, 4> part[kTogether];
      double part_weight[kTogether];
      SIAM_UNROLL
      for (int u = 0; u < kTogether; ++u) {
        const bool there = u < rest;
        part[u] = load_four<C>(partials, there ? count : 0, aligned);
        part_weight[u] = there && !args.signs ? load<double>(sums) : 0.0;
        partials += step;
        sums += args.x.rows;
      }
      SIAM_UNROLL
      for (int u = 0; u < kTogether; ++u) {
        weight += part_weight[u];
        SIAM_UNROLL
        for (int e = 0; e < 4; ++e) r.sum.element[e] = r.sum.element[e] + part[u].element[e];
      }
    }
    if (!args.signs) {
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) {
        // Of a row that is not finite every pair is direct.
        const double own = finite ? static_cast<double>(r.x.element[e]) : 0.0;
        r.sum.element[e] =
            static_cast<C>(2 * (weight * own - static_cast<double>(r.sum.element[e])));
      }
    }
    if (args.mask != nullptr) r.add_masked(finite);
    if (args.spoilt != nullptr && norm != norm) {
      const double value = load<double>(args.spoilt + row);
      SIAM_UNROLL
      for (int e = 0; e < 4; ++e) r.sum.element[e] = value != value ? norm : r.sum.element[e];
    }
    C* const out = static_cast<C*>(args.out) + line * args.dim + dim;
    Pack<C, 4> before{};
    if (args.accumulate) before = load_four<C>(out, count);
    SIAM_UNROLL
    for (int e = 0; e < 4; ++e) before.element[e] = before.element[e] + r.sum.element[e];
    store_four(before, out, count, aligned_to_access(out));
  }
}

// --- launchers -----------------------------------------------------------------------------------

inline unsigned warp_grid(int64_t warps, int multiprocessors) {
  const int64_t blocks = warps / kTileWarps + (warps % kTileWarps != 0);
  const int64_t resident = static_cast<int64_t>(std::max(multiprocessors, 1)) * kRowBlocksPerSm;
  return static_cast<unsigned>(std::min(blocks, resident));
}

// A mask of half precision is compared in float, by the rule of the engine that made it.
template <class Out>
void launch_mask_typed(const MaskArgs& args, DType dtype, TileDevice device, Stream stream) {
  using C = typename math::Storage<Out>::Compute;
  const int64_t runs = args.batch * args.rows * ((args.words + kMaskRun<Out> - 1) / kMaskRun<Out>);
  if (runs == 0) return;
  DirectRule<C> rule =
      direct_rule<C>(math::tile_engine(dtype, args.dim, device.capability), args.dim);
  rule.threshold = static_cast<C>(1.02) * rule.threshold;
  SIAM_LAUNCH((mask_kernel<Out>), Dim3(warp_grid(runs, device.multiprocessors)), Dim3(kTileThreads),
              0, stream, args, rule);
}

}  // namespace siamcuda::cuda
