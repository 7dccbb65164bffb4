// The product of a panel of weights with rows (product.cuh) on tensor cores, where they make the
// distances of float32 too (math/tiles.h). Kernel text for nvcc and for the emulator.
//
// A weight is the sum of two operands of TF32, and so is a float; 16-bit values are operands as
// they are. The product of the two small parts is left out, 2^-22 of the whole.
//
//                    product_tensor_kernel                 near_kernel
//   a block has      64 rows x 128 dimensions of one       4 tiles of 64 x 128 pairs
//                    split of the sum
//   threads          256                                   128
//   of a warp        32 rows x 32 dimensions               1 tile
//   per thread       2 x 4 instructions of 16 x 8          64 pairs
//   stages           3 of 16 terms                         -
//   registers        128                                   46
//   shared memory    43 KiB (16 bits: 30)                  -
//   blocks an SM     2                                     8
//   bytes            weights once per 128 dimensions, y    the mask, 1 bit a pair
//                    once per 64 rows, partial sums once
//   FLOPs            6 a term and dimension, 4 with        -
//                    16-bit values
//
// What a stage holds is right but for pairs that are direct and rows that are not finite. Both are
// rare: `near` says in which tiles of the panel a bit of the mask is set, and a vote over the norms
// of the stage finds such rows; then the stage is mended in shared memory before it is multiplied.
#pragma once

#include "cuda/product.cuh"

namespace siamcuda::cuda {

// Whether any pair of a tile of the panel has a bit in the mask.
template <int kUnused = 0>
SIAM_KERNEL(kTileThreads, 8)
void near_kernel(const NearArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kWords = kTileColumns / 32;
  const int64_t across = (args.words + kWords - 1) / kWords;
  const int64_t down = (args.rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = blockIdx.x * int64_t{kTileWarps} + warp; tile < args.batch * down * across;
       tile += gridDim.x * int64_t{kTileWarps}) {
    const int64_t batch = tile / (down * across), rest = tile - batch * down * across;
    const int64_t first_row = rest / across * kTileRows, first_word = rest % across * kWords;
    unsigned any = 0;
    SIAM_UNROLL
    for (int k = 0; k < kTileRows * kWords / 32; ++k) {
      const int64_t row = first_row + (k * 32 + lane) / kWords;
      const int64_t word = first_word + lane % kWords;
      if (row < args.rows && word < args.words) {
        any |= load<unsigned>(args.mask + (batch * args.rows + row) * args.words + word);
      }
    }
    const bool found = __ballot_sync(kWarp, any != 0) != 0;
    if (lane == 0) store(static_cast<int>(found), args.near + tile);
  }
}

constexpr int kTensorDepth = kProductUnit, kTensorStages = 3, kTensorDims = product_dims(false);
constexpr int kTensorThreads = 256;

// Weights lie row by row, or term by term where the panel is transposed: as they come. Steps are
// such that the words of an operand are in different banks.
template <bool kTransposed>
struct TensorWeights {
  static constexpr int kRowStep = kTransposed ? 1 : kTensorDepth + 4;
  static constexpr int kTermStep = kTransposed ? kProductRows + 8 : 1;
  static constexpr int kOfStage = kTransposed ? kTensorDepth * kTermStep : kProductRows * kRowStep;
};
constexpr int kTensorValueStep = kTensorDims + 8;
constexpr int kTensorValues = kTensorDepth * kTensorValueStep;

template <class T, bool kTransposed>
struct TensorProduct {
  using Weights = TensorWeights<kTransposed>;
  static constexpr bool kExact = sizeof(T) == 2;
  static constexpr int kFour = 4;  // weights of a chunk
  static constexpr int kElements = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kAcross = kTensorDims / kElements;  // chunks of a row of values

  const ProductArgs& args;
  const ProductPlace& place;
  const ProductAligned& aligned;
  int dims;  // of the block's, those that are there

  // --- stages ------------------------------------------------------------------------------------

  // Chunk number `u` of the thread: where it is in the panel and how many of its weights are there.
  struct Quad {
    int row, term;
    int64_t line, column;
    int64_t left;
  };
  static constexpr int kQuads = kProductRows * kTensorDepth / kFour / kTensorThreads;
  SIAM_DEVICE Quad quad(int u, int64_t first) const {
    const int q = static_cast<int>(threadIdx.x) + u * kTensorThreads;
    Quad found;
    found.term = kTransposed ? q / (kProductRows / kFour) : q % (kTensorDepth / kFour) * kFour;
    found.row = kTransposed ? q % (kProductRows / kFour) * kFour : q / (kTensorDepth / kFour);
    const int64_t k = first + found.term, r = place.row + found.row;
    const bool here = kTransposed ? k < place.end : r < args.x.rows;
    found.line = (kTransposed ? place.batch * args.y.rows + k : place.batch * args.x.rows + r);
    found.column = kTransposed ? r : k;
    found.left = here ? (kTransposed ? args.x.rows : place.end) - found.column : 0;
    return found;
  }

  // The first chunks that this thread copies of a stage; those of the next stage lie `next`
  // further.
  struct Source {
    const float* weights;
    const T* values;
  };
  SIAM_DEVICE Source source() const {
    const Quad q = quad(0, place.begin);
    const int thread = static_cast<int>(threadIdx.x);
    return {static_cast<const float*>(args.weights) + q.line * panel_columns() + q.column,
            static_cast<const T*>(args.y.data) + place.batch * args.y.batch_step +
                (place.begin + thread / kAcross) * args.y.row_step + place.dim +
                thread % kAcross * kElements};
  }
  SIAM_DEVICE int64_t panel_columns() const { return kTransposed ? args.x.rows : args.y.rows; }
  SIAM_DEVICE void advance(Source& from) const {
    from.weights += kTransposed ? kTensorDepth * panel_columns() : kTensorDepth;
    from.values += kTensorDepth * args.y.row_step;
  }

  // `terms`: how many of the stage are there, of 16 or any number more.
  SIAM_DEVICE void copy(const Source& from, int terms, const Shared<float>& weights,
                        const Shared<T>& values) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int rows = args.x.rows - place.row < kProductRows
                         ? static_cast<int>(args.x.rows - place.row)
                         : kProductRows;
    constexpr int kRowsApart = kTransposed ? 0 : kTensorThreads / (kTensorDepth / kFour);
    constexpr int kTermsApart = kTransposed ? kTensorThreads / (kProductRows / kFour) : 0;
    SIAM_UNROLL
    for (int u = 0; u < kQuads; ++u) {
      const int row = (kTransposed ? thread % (kProductRows / kFour) * kFour
                                   : thread / (kTensorDepth / kFour)) +
                      u * kRowsApart;
      const int term = (kTransposed ? thread / (kProductRows / kFour)
                                    : thread % (kTensorDepth / kFour) * kFour) +
                       u * kTermsApart;
      const bool here = row < rows && term < terms;
      const int left = !here ? 0 : kTransposed ? rows - row : terms - term;
      const int at = row * Weights::kRowStep + term * Weights::kTermStep;
      const float* const line = from.weights + u * (kRowsApart + kTermsApart) * panel_columns();
      if (aligned.weights && (left == 0 || left >= kFour)) {
        cp_async_16(weights + at, line, left > 0 ? kChunkBytes : 0);
        continue;
      }
      SIAM_NO_UNROLL
      for (int e = 0; e < kFour; ++e) {
        store_shared(e < left ? load<float>(line + e) : 0.0f, weights, at + e);
      }
    }
    const int dim = thread % kAcross * kElements, first_term = thread / kAcross;
    SIAM_UNROLL
    for (int u = 0; u < kTensorDepth * kAcross / kTensorThreads; ++u) {
      const int term = first_term + u * (kTensorThreads / kAcross);
      const int left = term < terms && dim < dims ? dims - dim : 0;
      const T* const line = from.values + u * (kTensorThreads / kAcross) * args.y.row_step;
      const int at = term * kTensorValueStep + dim;
      if (aligned.rows && (left == 0 || left >= kElements)) {
        cp_async_16(values + at, line, left > 0 ? kChunkBytes : 0);
        continue;
      }
      SIAM_NO_UNROLL
      for (int e = 0; e < kElements; ++e) {
        store_shared(e < left ? load<T>(line + e) : T{}, values, at + e);
      }
    }
  }

  // Bits of the stage's terms whose row is not finite.
  SIAM_DEVICE unsigned spoilt(int64_t first) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float norm = 0;
    if (lane < kTensorDepth && first + lane < place.end) {
      norm = load<float>(static_cast<const float*>(args.y.norms) + place.batch * args.y.rows +
                         first + lane);
    }
    return __ballot_sync(kWarp, !is_finite(norm));
  }
  SIAM_DEVICE bool near(int64_t first) const {
    if (args.mask == nullptr) return false;
    const int64_t panel_rows = kTransposed ? args.y.rows : args.x.rows;
    const int64_t panel_columns = kTransposed ? args.x.rows : args.y.rows;
    const int64_t p = kTransposed ? first : place.row, c = kTransposed ? place.row : first;
    const int64_t down = (panel_rows + kTileRows - 1) / kTileRows;
    const int64_t across = (panel_columns + kTileColumns - 1) / kTileColumns;
    return load<int>(args.near + (place.batch * down + p / kTileRows) * across +
                     c / kTileColumns) != 0;
  }

  // Direct pairs get no weight here, and rows that are not finite no value: their pairs are all
  // direct, and zero times what they hold would be NaN.
  SIAM_DEVICE void mend(int64_t first, bool masked, unsigned bad, const Shared<float>& weights,
                        const Shared<T>& values) const {
    SIAM_UNROLL
    for (int u = 0; u < (masked ? kQuads : 0); ++u) {
      const Quad q = quad(u, first);
      if (q.left <= 0) continue;
      const unsigned bits =
          load<unsigned>(args.mask + q.line * args.mask_words + q.column / 32) >> (q.column % 32);
      SIAM_UNROLL
      for (int e = 0; e < kFour; ++e) {
        const int at = q.row * Weights::kRowStep + q.term * Weights::kTermStep + e;
        if (e < q.left && (bits >> e & 1u) != 0) store_shared(0.0f, weights, at);
      }
    }
    SIAM_NO_UNROLL
    for (int term = 0; term < kTensorDepth && bad >> term != 0; ++term) {
      if ((bad >> term & 1u) == 0) continue;
      for (int d = static_cast<int>(threadIdx.x); d < kTensorDims; d += kTensorThreads) {
        store_shared(T{}, values, term * kTensorValueStep + d);
      }
    }
  }

  // --- sums --------------------------------------------------------------------------------------

  static constexpr int kWarpDims = 32, kRuns = kWarpDims / kMmaColumns;
  float total[2][kRuns][4];

  SIAM_DEVICE static int warp_row(int thread) { return thread / 128 * 32; }
  SIAM_DEVICE static int warp_dim(int thread) { return thread / 32 % 4 * kWarpDims; }
  SIAM_DEVICE static int row(int thread, int i) {
    return warp_row(thread) + i / 2 * kMmaRows + mma_c_place(thread % 32, i % 2 * 2).row;
  }
  SIAM_DEVICE static int dim(int thread, int n) {
    return warp_dim(thread) + n * kMmaColumns + mma_c_place(thread % 32, 0).column;
  }

  SIAM_DEVICE void begin() {
    SIAM_UNROLL
    for (int m = 0; m < 2; ++m) {
      SIAM_UNROLL
      for (int n = 0; n < kRuns; ++n) {
        SIAM_UNROLL
        for (int r = 0; r < 4; ++r) total[m][n][r] = 0;
      }
    }
  }

  // Eight terms from `first` on. Their chain begins at 0 and is added up rounded to nearest, as a
  // tensor core would not do it.
  SIAM_DEVICE void add_terms(int first, const Shared<float>& weights, const Shared<T>& values,
                             int thread) {
    const int lane = thread % 32, first_row = warp_row(thread), first_dim = warp_dim(thread);
    uint32_t a[2][4], small_a[2][4];
    SIAM_UNROLL
    for (int m = 0; m < 2; ++m) {
      SIAM_UNROLL
      for (int r = 0; r < 4; ++r) {
        const MatrixPlace at = mma_a_place(1, lane, r, 0);
        a[m][r] = __float_as_uint(
            load_shared<float>(weights, (first_row + m * kMmaRows + at.row) * Weights::kRowStep +
                                            (first + at.column) * Weights::kTermStep));
        Tf32x3Engine::split(a[m][r], small_a[m][r]);
      }
    }
    SIAM_UNROLL
    for (int n = 0; n < kRuns; ++n) {
      if (first_dim + n * kMmaColumns >= dims) continue;
      uint32_t b[2], small_b[2];
      SIAM_UNROLL
      for (int r = 0; r < 2; ++r) {
        const MatrixPlace at = mma_b_place(1, lane, r, 0);
        const T y = load_shared<T>(
            values, (first + at.row) * kTensorValueStep + first_dim + n * kMmaColumns + at.column);
        b[r] = __float_as_uint(math::widen(y));
        if constexpr (!kExact) Tf32x3Engine::split(b[r], small_b[r]);
      }
      SIAM_UNROLL
      for (int m = 0; m < 2; ++m) {
        float c[4] = {0, 0, 0, 0};
        mma_m16n8k8_tf32(c, small_a[m], b);
        if constexpr (!kExact) mma_m16n8k8_tf32(c, a[m], small_b);
        mma_m16n8k8_tf32(c, a[m], b);
        SIAM_UNROLL
        for (int r = 0; r < 4; ++r) total[m][n][r] = __fadd_rn(total[m][n][r], c[r]);
      }
    }
  }
};

template <class T, bool kTransposed>
SIAM_KERNEL(kTensorThreads, 2)
void product_tensor_kernel(const ProductArgs args, const ProductLaunch launch,
                           const ProductAligned aligned) {
  if constexpr (kTensorCores) {
    using Weights = TensorWeights<kTransposed>;
    SIAM_SHARED(float, weights, kTensorStages* Weights::kOfStage);
    SIAM_SHARED(T, values, kTensorStages * kTensorValues);
    constexpr int kSumParts = kTensorThreads / kProductRows, kSumTerms = kTensorDepth / kSumParts;
    SIAM_SHARED(double, parts, kTensorThreads);
    const int thread = static_cast<int>(threadIdx.x);
    SIAM_NO_UNROLL
    for (int64_t tile = blockIdx.x; tile < launch.tiles; tile += gridDim.x) {
      const ProductPlace place = product_place<kTensorDims>(args, launch, tile);
      const int dims =
          args.dim - place.dim < kTensorDims ? static_cast<int>(args.dim - place.dim) : kTensorDims;
      TensorProduct<T, kTransposed> product{args, place, aligned, dims, {}};
      product.begin();
      double weight_sum = 0;  // of row thread mod 64, a quarter of the terms of every stage
      const int terms = static_cast<int>(place.end - place.begin);
      const int steps = (terms + kTensorDepth - 1) / kTensorDepth;
      auto from = product.source();
      __syncthreads();  // the last tile's stages are no longer read
      SIAM_NO_UNROLL
      for (int s = 0; s < kTensorStages - 1; ++s) {
        if (s < steps) {
          product.copy(from, terms - s * kTensorDepth, weights + s * Weights::kOfStage,
                       values + s * kTensorValues);
          product.advance(from);
        }
        cp_async_commit();
      }
      int now = 0;
      SIAM_NO_UNROLL
      for (int step = 0; step < steps; ++step) {
        const int64_t first = place.begin + int64_t{step} * kTensorDepth;
        const unsigned bad = product.spoilt(first);
        const bool masked = product.near(first);
        // Behind the barrier this stage is full, and the one before is no longer read.
        cp_async_wait<kTensorStages - 2>();
        __syncthreads();
        const int ahead = step + kTensorStages - 1;
        if (ahead < steps) {
          const int to = (now + kTensorStages - 1) % kTensorStages;
          product.copy(from, terms - ahead * kTensorDepth, weights + to * Weights::kOfStage,
                       values + to * kTensorValues);
          product.advance(from);
        }
        cp_async_commit();
        const auto stage_weights = weights + now * Weights::kOfStage;
        const auto stage_values = values + now * kTensorValues;
        if (masked || bad != 0) {  // the same for the whole block
          product.mend(first, masked, bad, stage_weights, stage_values);
          __syncthreads();
        }
        SIAM_NO_UNROLL  // two copies of it would not find the registers
            for (int k = 0; k < kTensorDepth; k += 8) {
          product.add_terms(k, stage_weights, stage_values, thread);
        }
        if (place.dim == 0) {
          const int at = thread % kProductRows * Weights::kRowStep +
                         thread / kProductRows * kSumTerms * Weights::kTermStep;
          float sum = 0, four[kSumTerms];
          if constexpr (!kTransposed) {  // one by one, rows 20 words apart would meet in 8 banks
            static_assert(kSumTerms == 4, "one access");
            load_shared_four(stage_weights, at, four);
          }
          SIAM_UNROLL
          for (int k = 0; k < kSumTerms; ++k) {
            if constexpr (kTransposed) {
              four[k] = load_shared<float>(stage_weights, at + k * Weights::kTermStep);
            }
            sum = sum + four[k];
          }
          weight_sum += sum;
        }
        now = (now + 1) % kTensorStages;
      }
      cp_async_wait<0>();
      const int64_t line = (place.batch * launch.splits + place.split) * args.x.rows;
      if (place.dim == 0) {
        parts[thread] = weight_sum;
        __syncthreads();
        const int64_t r = place.row + thread;
        if (thread < kProductRows && r < args.x.rows) {
          double sum = 0;
          SIAM_UNROLL
          for (int part = 0; part < kSumParts; ++part) {
            const double more = parts[part * kProductRows + thread];
            sum += more;
          }
          store(sum, args.sums + line + r);
        }
      }
      SIAM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t r = place.row + product.row(thread, i);
        if (r >= args.x.rows) continue;
        SIAM_UNROLL
        for (int n = 0; n < product.kRuns; ++n) {
          const int d = product.dim(thread, n);
          float* const to = static_cast<float*>(args.partials) + (line + r) * args.dim + place.dim;
          const float one = product.total[i / 2][n][i % 2 * 2];
          const float two = product.total[i / 2][n][i % 2 * 2 + 1];
          if (aligned.outputs && d + 2 <= dims) {
            store(Pack<float, 2>{one, two}, to + d);
            continue;
          }
          if (d < dims) store(one, to + d);
          if (d + 1 < dims) store(two, to + d + 1);
        }
      }
    }
  }
}

template <class T>
void launch_product_tensor(const ProductArgs& args, const ProductLaunch& launch,
                           const ProductAligned& aligned, Stream stream) {
  const Dim3 grid(launch.grid), block(kTensorThreads);
  if (args.transposed) {
    SIAM_LAUNCH((product_tensor_kernel<T, true>), grid, block, 0, stream, args, launch, aligned);
  } else {
    SIAM_LAUNCH((product_tensor_kernel<T, false>), grid, block, 0, stream, args, launch, aligned);
  }
}

template <class T>
void launch_product_typed(ProductArgs args, TileDevice device, Stream stream) {
  using C = typename math::Storage<T>::Compute;
  const ProductLaunch launch = product_launch(args.batch, args.x.rows, args.y.rows, args.dim,
                                              args.signs || sizeof(C) == 8, device.multiprocessors);
  if (launch.tiles == 0) return;
  args.x = without_idle_steps(args.x, args.batch);
  args.y = without_idle_steps(args.y, args.batch);
  const auto aligned_to_16 = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const int64_t columns = args.transposed ? args.x.rows : args.y.rows;
  const ProductAligned aligned{aligned_to_16(args.weights) && columns % 4 == 0,
                               tile_rows_aligned(args.y, args.batch, sizeof(T)),
                               aligned_to_16(args.partials) && args.dim % 4 == 0};
  const Dim3 grid(launch.grid), block(kTileThreads);
  const bool tensor =
      math::tile_engine(DType::kFloat32, args.dim, device.capability) == TileEngine::kTf32x3;
  if (args.signs) {
    if constexpr (sizeof(T) == sizeof(C)) {  // 16-bit inputs come widened
      SIAM_LAUNCH((product_kernel<T, true>), grid, block, 0, stream, args, launch, aligned);
    }
  } else if (sizeof(C) == 4 && tensor) {
    if constexpr (sizeof(C) == 4) launch_product_tensor<T>(args, launch, aligned, stream);
  } else {
    SIAM_LAUNCH((product_kernel<T, false>), grid, block, 0, stream, args, launch, aligned);
  }
  const int64_t parts = (args.dim + kGradientDims - 1) / kGradientDims;
  SIAM_LAUNCH((gradient_kernel<T>),
              Dim3(warp_grid(args.batch * args.x.rows * parts, device.multiprocessors)), block, 0,
              stream, args, launch.splits);
}

}  // namespace siamcuda::cuda
