// The CUDA tile engine: squared distances of all pairs of rows, a tile at a time, handed in
// registers to a sink. Kernel text for nvcc and for the emulator.
//
// Parallelisation. A block of 128 threads, or of 256 on tensor cores, takes tiles of 64 rows of x1
// by 128 rows of x2 ("columns"), the grid strides over the tiles of the whole batch. Stages of 64
// bytes of each row come through shared memory, the next one while this one is multiplied; a thread
// adds up the products of its 64 or 32 pairs, forms d2 = |x|^2 + |y|^2 - 2 x.y, computes directly
// what cancelled (math/tiles.h), and gives them all to the sink with their rows and columns.
//
//   engine          fma32, D <= 128   fma32, D > 128   mma16       tf32x3      fma64
//   for             float; 16-bit before sm_80         bf16, fp16  float on    double
//                                                                  sm_80, sm_90
//   pairs           64 x 128 of a block; of a warp 32 x 64, on tensor cores 32 x 32
//   per thread      8 x 8             8 x 8, twice     4 x 8       4 x 8       8 x 8
//   stages          2 of 12 KiB: 16 floats, 32 16-bit or 8 double elements of 192 rows
//   registers       168               228              128         128         247
//     (most, any architecture; without spills, see tests/gates)
//   shared memory   stages, and 48 bytes a thread of what it must remember of its tile: 30 KiB, on
//                   tensor cores 36
//   blocks an SM    3                 2                2           2           2
//   warps an SM     12                8                16          16          8
//     (2 blocks everywhere on sm_75, for its 64 KiB of shared memory)
//     (kAbsolute, for sums of |x - y|: FADD for FFMA, the numbers of fma32 with D > 128 or fma64;
//     kBits, for packed bits: 192 POPC for 64 x 128 bits, the numbers of fma32 with D <= 128)
//   main loop       fma32, fma64: 256 FFMA (128 DFMA) and 16 loads of 16 bytes in 281 (152)
//                   instructions; mma16: 16 HMMA, 32 FADD and 8 LDSM a stage; tf32x3: 24 HMMA, 64
//                   FADD, 4 LDSM and the splitting of 16 operands, 4 instructions each
//   bytes, a tile   (64 + 128) D sizeof(T) read, most of it from L2; what the sink writes
//   FLOPs, a tile   2 x 64 x 128 D, three times that for tf32x3; 2 D more a pair that is direct
//
// A pair's bits depend on its two rows, dtype, D and architecture alone: each sum runs over D in
// one order, rows and dimensions that are not there are zeros, and no sum spans threads, except in
// direct pairs, whose order is fixed. All offsets are 64-bit; the grid is one-dimensional and
// bounded.
//
// A sink is a plain struct, copied to the kernel, with
//   template <class Layout, class C>
//   void take(const TilePlace&, const C (&d2)[Layout::kRows][Layout::kColumns]) const
// called by all threads of the block, whose pair [i][j] is row Layout::row(thread, i) and column
// Layout::column(thread, j) of the tile; what is not below rows_here and columns_here is no pair.
// One with a member kScratch gets the stages besides, as memory that is its own behind a barrier;
// one with a member wants(place) says before a tile is loaded whether it is looked at.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/common.cuh"
#include "cuda/tensor_core.cuh"
#include "cuda/tile_launch.h"
#include "math/tiles.h"

namespace siamcuda::cuda {

using math::TileEngine;

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T element[kCount];
};

SIAM_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SIAM_DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
SIAM_DEVICE float minus(float a, float b) { return __fsub_rn(a, b); }
SIAM_DEVICE double minus(double a, double b) { return __dsub_rn(a, b); }

constexpr int kChunkBytes = 16;
template <class T>
using Chunk = Pack<T, kChunkBytes / static_cast<int>(sizeof(T))>;

// The chunk that begins at `first`; zero past the end of the row.
template <class T>
SIAM_DEVICE Chunk<T> load_chunk(const T* row, int64_t first, int64_t dim, bool aligned) {
  constexpr int kElements = kChunkBytes / sizeof(T);
  if (aligned && first + kElements <= dim) return load<Chunk<T>>(row + first);
  Chunk<T> chunk{};
  SIAM_UNROLL
  for (int e = 0; e < kElements; ++e) {
    if (first + e < dim) chunk.element[e] = load<T>(row + first + e);
  }
  return chunk;
}

// --- norms ---------------------------------------------------------------------------------------

// Eight lanes a row: lane l sums the chunks l, l + 8, ... in double, then the lanes meet. Bytes:
// the matrix once. Two FLOPs in double an element.
constexpr int kNormLanes = 8;

template <class T>
SIAM_KERNEL(kTileThreads, 8)
void row_norms_kernel(const TileMatrix x, const int64_t batch, const int64_t dim,
                      const bool aligned) {
  using C = typename math::Storage<T>::Compute;
  constexpr int kElements = kChunkBytes / sizeof(T), kRows = kTileThreads / kNormLanes;
  const int lane = static_cast<int>(threadIdx.x) % kNormLanes;
  const int64_t total = batch * x.rows;
  for (int64_t first = blockIdx.x * int64_t{kRows}; first < total;
       first += gridDim.x * int64_t{kRows}) {
    const int64_t index = first + threadIdx.x / kNormLanes;
    const bool here = index < total;
    const int64_t b = here ? index / x.rows : 0;
    const T* const row = static_cast<const T*>(x.data) + b * x.batch_step +
                         (here ? index - b * x.rows : 0) * x.row_step;
    double sum = 0;
    for (int64_t k = lane * kElements; k < (here ? dim : 0); k += kNormLanes * kElements) {
      const Chunk<T> chunk = load_chunk(row, k, dim, aligned);
      SIAM_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const double value = static_cast<double>(math::widen(chunk.element[e]));
        sum = __fma_rn(value, value, sum);
      }
    }
    SIAM_UNROLL
    for (int offset = kNormLanes / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(kWarp, sum, offset);
    }
    if (here && lane == 0) store(static_cast<C>(sum), static_cast<C*>(x.norms) + index);
  }
}

// --- stages --------------------------------------------------------------------------------------

// A stage holds 64 bytes of each row of the tile: first those of x1, then those of x2. Its chunks
// are permuted within each pair of rows, so that eight consecutive rows have the same chunk in
// eight different groups of banks, and two rows fill all banks: neither copies nor loads meet a
// conflict.
constexpr int kStageRowBytes = 64, kStageChunks = kStageRowBytes / kChunkBytes;
constexpr int kStageRows = kTileRows + kTileColumns;
constexpr int kStageBytes = kStageRows * kStageRowBytes;
constexpr int kStages = 2;

SIAM_DEVICE int stage_offset(int row, int chunk) {
  return row * kStageRowBytes + (chunk ^ (row / 2 % kStageChunks)) * kChunkBytes;
}

// The same chunk `rows` further on, a multiple of 8: the permutation repeats, and what is known
// when compiled stays an immediate operand.
SIAM_DEVICE int later_row(int offset, int rows) { return offset + rows * kStageRowBytes; }

struct TilePlace {
  int64_t batch;
  int64_t first_row, first_column;  // of the tile
  int64_t rows, columns;            // of the whole: P and R
  int rows_here, columns_here;      // of the tile, at its edges fewer than kTileRows, kTileColumns
};

// The thread's number as the compiler has not seen it: what a tile derives from it would otherwise
// be prepared before the main loop, or kept beyond it, and cost registers there.
SIAM_DEVICE int thread_afresh() {
#if defined(__CUDA_ARCH__)
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return static_cast<int>(thread);
#else
  return static_cast<int>(threadIdx.x);
#endif
}

SIAM_DEVICE TilePlace place_at(const TileArgs& args, int64_t batch, int64_t first_row,
                               int64_t first_column) {
  TilePlace place{batch,        first_row, first_column, args.x1.rows,
                  args.x2.rows, kTileRows, kTileColumns};
  if (place.rows - place.first_row < kTileRows) {
    place.rows_here = static_cast<int>(place.rows - place.first_row);
  }
  if (place.columns - place.first_column < kTileColumns) {
    place.columns_here = static_cast<int>(place.columns - place.first_column);
  }
  return place;
}

SIAM_DEVICE TilePlace tile_place(const TileArgs& args, const TileLaunch& launch, int64_t tile) {
  const int64_t batch = tile / (launch.row_tiles * launch.column_tiles);
  const int64_t rest = tile - batch * launch.row_tiles * launch.column_tiles;
  const int64_t band = rest / (kTileBand * launch.column_tiles);
  const int64_t first = band * kTileBand, left = launch.row_tiles - first;
  const int height = left < kTileBand ? static_cast<int>(left) : kTileBand;
  const int64_t within = rest - first * launch.column_tiles, across = within / height;
  return place_at(args, batch, (first + within - across * height) * kTileRows,
                  across * kTileColumns);
}

// What a thread must remember of its tile lies in shared memory, each thread's own copy: in
// registers it would take the place of sums.
template <class T, int kThreads>
struct TileMemo {
  Shared<int64_t> numbers;  // [4, kThreads] tile, batch, first row, first column
  Shared<const T*> rows;    // [2, kThreads] the chunk it copies first, of x1 and of x2

  SIAM_DEVICE int64_t number(int which) const {
    return load_shared<int64_t>(numbers, which * kThreads + thread_afresh());
  }
};

// Where a thread's chunks are: the same chunk of every kRowsAtOnce-th row.
template <int kThreads>
constexpr int rows_at_once() {
  constexpr int kRows = kThreads / kStageChunks;
  static_assert(kTileRows % kRows == 0 && kTileColumns % kRows == 0, "whole passes");
  static_assert(kRows % (2 * kStageChunks) == 0, "the permutation repeats");
  return kRows;
}

template <class T, int kThreads>
SIAM_DEVICE void remember_tile(const TileArgs& args, const TilePlace& place, int64_t tile,
                               const TileMemo<T, kThreads>& memo) {
  constexpr int kElements = kChunkBytes / sizeof(T);
  const int thread = thread_afresh();
  const int first = thread % kStageChunks * kElements, row = thread / kStageChunks;
  store_shared(tile, memo.numbers, thread);
  store_shared(place.batch, memo.numbers, kThreads + thread);
  store_shared(place.first_row, memo.numbers, 2 * kThreads + thread);
  store_shared(place.first_column, memo.numbers, 3 * kThreads + thread);
  store_shared(static_cast<const T*>(args.x1.data) + place.batch * args.x1.batch_step +
                   (place.first_row + row) * args.x1.row_step + first,
               memo.rows, thread);
  store_shared(static_cast<const T*>(args.x2.data) + place.batch * args.x2.batch_step +
                   (place.first_column + row) * args.x2.row_step + first,
               memo.rows, kThreads + thread);
}

// Rows outside the matrix and dimensions past D become zeros, which change no sum. A row that is
// not there has an address, of which nothing is read. `edge`: rows of the tile that are there, and
// columns in the upper half.
template <class T, int kThreads>
SIAM_DEVICE void copy_stage(const TileArgs& args, const TileMemo<T, kThreads>& memo, int edge,
                            int step, bool aligned, const Shared<unsigned char>& stage) {
  constexpr int kElements = kChunkBytes / sizeof(T), kRowsAtOnce = rows_at_once<kThreads>();
  const int thread = thread_afresh();
  const int chunk = thread % kStageChunks, row = thread / kStageChunks;
  const int rows_here = edge & 0xFFFF, columns_here = edge >> 16;
  const int64_t first = int64_t{step} * kStageChunks * kElements;
  const int64_t left = args.dim - first - chunk * kElements;
  const int valid = static_cast<int>(left < 0 ? 0 : left < kElements ? left : kElements);
  const T* const x1 = load_shared<const T*>(memo.rows, thread) + first;
  const T* const x2 = load_shared<const T*>(memo.rows, kThreads + thread) + first;
  const int offset = stage_offset(row, chunk);
  if (aligned) {
    const auto bytes = [valid](bool here) { return here ? valid * int{sizeof(T)} : 0; };
    SIAM_UNROLL
    for (int i = 0; i < kTileRows; i += kRowsAtOnce) {
      cp_async_16(stage + (offset + i * kStageRowBytes), x1 + i * args.x1.row_step,
                  bytes(row + i < rows_here));
    }
    SIAM_UNROLL
    for (int i = 0; i < kTileColumns; i += kRowsAtOnce) {
      cp_async_16(stage + (offset + (kTileRows + i) * kStageRowBytes), x2 + i * args.x2.row_step,
                  bytes(row + i < columns_here));
    }
    return;
  }
  SIAM_NO_UNROLL
  for (int i = 0; i < kStageRows; i += kRowsAtOnce) {
    const bool of_x1 = i < kTileRows;
    const bool here = of_x1 ? row + i < rows_here : row + i - kTileRows < columns_here;
    const T* const from =
        of_x1 ? x1 + i * args.x1.row_step : x2 + (i - kTileRows) * args.x2.row_step;
    store_shared(load_chunk(from, 0, here ? valid : 0, false), stage, offset + i * kStageRowBytes);
  }
}

// --- engines -------------------------------------------------------------------------------------
// Each says which pairs of the tile a thread owns, and adds the products of a stage to its sums.

// FFMA and DFMA. Four rows of eight threads make a warp, 2 x 2 warps the block; a thread's rows and
// columns are spread evenly, so that the threads of a warp read consecutive rows of a stage.
struct FmaLayout {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kParts = 2;  // warps that share a row
  static constexpr int kRows = 8, kColumns = 8;
  static constexpr int kRowLanes = 8;  // neighbouring lanes that share their rows
  static constexpr int kRowStep = 8;   // between a thread's rows
  static constexpr int kRun = 1;       // consecutive columns
  SIAM_DEVICE static int row(int thread, int i) {
    return thread / 64 * 4 + thread % 32 / 8 + kRowStep * i;
  }
  SIAM_DEVICE static int column(int thread, int j) {
    return thread / 32 % 2 * 8 + thread % 8 + 16 * j;
  }
  SIAM_DEVICE static int part(int thread) { return thread / 32 % kParts; }
};

// With kBlocks, chains end after math::kTileDepth dimensions and are added up in registers of their
// own; without, one chain is all there is: for D up to kTileDepth, with the same bits, or in
// double. With kAbsolute the sums are of |x - y| instead of products.
template <class T, bool kBlocks, bool kAbsolute = false>
struct FmaEngine {
  using C = typename math::Storage<T>::Compute;
  using Layout = FmaLayout;
  static constexpr int kFragment = sizeof(T) == 8 ? 2 : 4;  // elements read at once
  static constexpr int kFragmentBytes = kFragment * static_cast<int>(sizeof(T));
  static constexpr int kStepsOfBlock =
      math::kTileDepth * static_cast<int>(sizeof(T)) / kStageRowBytes;

  C sums[8][8];
  C chain[kBlocks ? 8 : 1][kBlocks ? 8 : 1];

  SIAM_DEVICE void begin() {
    SIAM_UNROLL
    for (int i = 0; i < 8; ++i) {
      SIAM_UNROLL
      for (int j = 0; j < 8; ++j) {
        sums[i][j] = 0;
        if constexpr (kBlocks) chain[i][j] = 0;
      }
    }
  }

  SIAM_DEVICE void step(int step, int thread, const Shared<unsigned char>& stage) {
    SIAM_NO_UNROLL  // read ahead, the next fragments would not find registers
        for (int at = 0; at < kStageRowBytes; at += kFragmentBytes) add_products(at, thread, stage);
    if (kBlocks && step % kStepsOfBlock == kStepsOfBlock - 1) end();
  }

  SIAM_DEVICE void end() {
    if constexpr (kBlocks) {
      SIAM_UNROLL
      for (int i = 0; i < 8; ++i) {
        SIAM_UNROLL
        for (int j = 0; j < 8; ++j) {
          sums[i][j] = sums[i][j] + chain[i][j];
          chain[i][j] = 0;
        }
      }
    }
  }

 private:
  // The products of the fragments at one byte of the rows, dimension by dimension.
  SIAM_DEVICE void add_products(int at, int thread, const Shared<unsigned char>& stage) {
    const int chunk = at / kChunkBytes, within = at % kChunkBytes;
    const int y_offset = stage_offset(kTileRows + Layout::column(thread, 0), chunk) + within;
    const int x_offset = stage_offset(Layout::row(thread, 0), chunk) + within;
    Pack<T, kFragment> y[8];
    SIAM_UNROLL
    for (int j = 0; j < 8; ++j) {
      y[j] = load_shared<Pack<T, kFragment>>(stage, later_row(y_offset, 16 * j));
    }
    SIAM_UNROLL
    for (int i = 0; i < 8; ++i) {
      const auto x = load_shared<Pack<T, kFragment>>(stage, later_row(x_offset, 8 * i));
      SIAM_UNROLL
      for (int e = 0; e < kFragment; ++e) {
        SIAM_UNROLL
        for (int j = 0; j < 8; ++j) {
          C& sum = kBlocks ? chain[kBlocks ? i : 0][kBlocks ? j : 0] : sums[i][j];
          if constexpr (kAbsolute) {
            sum = sum + math::abs(minus(math::widen(x.element[e]), math::widen(y[j].element[e])));
          } else {
            sum = fused(math::widen(x.element[e]), math::widen(y[j].element[e]), sum);
          }
        }
      }
    }
  }
};

// Bits that differ, 128 of a pair at a time. A multiprocessor counts bits at a quarter of the rate
// of its other integer operations: of each four words three are added bit by bit first, to a word
// of sums and one of carries, and three counts do for four.
struct BitsEngine {
  using C = int32_t;
  using Layout = FmaLayout;
  using Words = Pack<uint32_t, 4>;

  C sums[8][8];

  SIAM_DEVICE void begin() {
    SIAM_UNROLL
    for (int i = 0; i < 8; ++i) {
      SIAM_UNROLL
      for (int j = 0; j < 8; ++j) sums[i][j] = 0;
    }
  }
  SIAM_DEVICE void step(int, int thread, const Shared<unsigned char>& stage) {
    SIAM_NO_UNROLL  // as in FmaEngine
        for (int chunk = 0; chunk < kStageChunks; ++chunk) {
      const int y_offset = stage_offset(kTileRows + Layout::column(thread, 0), chunk);
      const int x_offset = stage_offset(Layout::row(thread, 0), chunk);
      Words y[8];
      SIAM_UNROLL
      for (int j = 0; j < 8; ++j) y[j] = load_shared<Words>(stage, later_row(y_offset, 16 * j));
      SIAM_UNROLL
      for (int i = 0; i < 8; ++i) {
        const auto x = load_shared<Words>(stage, later_row(x_offset, 8 * i));
        SIAM_UNROLL
        for (int j = 0; j < 8; ++j) {
          const uint32_t a = x.element[0] ^ y[j].element[0], b = x.element[1] ^ y[j].element[1];
          const uint32_t c = x.element[2] ^ y[j].element[2], d = x.element[3] ^ y[j].element[3];
          const uint32_t carries = (a & b) | (a & c) | (b & c);
          sums[i][j] += __popc(a ^ b ^ c) + __popc(d) + 2 * __popc(carries);
        }
      }
    }
  }
  SIAM_DEVICE void end() {}
};

// Tensor cores. 2 x 4 warps, each 32 x 32 pairs: 2 x 4 instructions of 16 x 8. Half as many sums a
// thread as FMA has leave registers for twice as many warps, which wait for each other's latencies.
struct MmaLayout {
  static constexpr int kThreads = 2 * kTileThreads;
  static constexpr int kParts = 4;
  static constexpr int kRows = 4, kColumns = 8;
  static constexpr int kRowLanes = 4;
  static constexpr int kRowStep = 8;
  static constexpr int kRun = 2;
  SIAM_DEVICE static int part(int thread) { return thread / 32 % kParts; }
  SIAM_DEVICE static int warp_row(int thread) { return thread / (32 * kParts) * 32; }
  SIAM_DEVICE static int warp_column(int thread) { return part(thread) * 32; }
  SIAM_DEVICE static int row(int thread, int i) {
    return warp_row(thread) + i / 2 * kMmaRows + mma_c_place(thread % 32, i % 2 * 2).row;
  }
  SIAM_DEVICE static int column(int thread, int j) {
    return warp_column(thread) + j / 2 * kMmaColumns + mma_c_place(thread % 32, j % 2).column;
  }
};

// Operands of instructions over two chunks of each row: 8 dimensions of 4 bytes, or 16 of 2. The 16
// rows number m of the warp, and the 2 x 8 columns number n.
SIAM_DEVICE void load_a(const Shared<unsigned char>& stage, int thread, int first_chunk, int m,
                        uint32_t (&a)[4]) {
  const int matrix = thread % 32 / 8;
  const int row = MmaLayout::warp_row(thread) + matrix % 2 * 8 + thread % 8;
  ldmatrix_x4(stage + later_row(stage_offset(row, first_chunk + matrix / 2), m * kMmaRows), a);
}
SIAM_DEVICE void load_b(const Shared<unsigned char>& stage, int thread, int first_chunk, int n,
                        uint32_t (&b)[2][2]) {
  const int matrix = thread % 32 / 8;
  const int row =
      kTileRows + MmaLayout::warp_column(thread) + matrix / 2 * kMmaColumns + thread % 8;
  uint32_t both[4];
  ldmatrix_x4(stage + later_row(stage_offset(row, first_chunk + matrix % 2), 2 * n * kMmaColumns),
              both);
  SIAM_UNROLL
  for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = both[i];
}

struct MmaSums {
  float sums[MmaLayout::kRows][MmaLayout::kColumns];

  SIAM_DEVICE void begin() {
    SIAM_UNROLL
    for (int i = 0; i < MmaLayout::kRows; ++i) {
      SIAM_UNROLL
      for (int j = 0; j < MmaLayout::kColumns; ++j) sums[i][j] = 0;
    }
  }
  // Rounded to nearest, as a tensor core would not do it.
  SIAM_DEVICE void add(int m, int n, const float (&c)[4]) {
    SIAM_UNROLL
    for (int r = 0; r < 4; ++r) {
      float& sum = sums[2 * m + r / 2][2 * n + r % 2];
      sum = __fadd_rn(sum, c[r]);
    }
  }
};

SIAM_DEVICE void multiply_add_tile(math::BFloat16, float (&c)[4], const uint32_t (&a)[4],
                                   const uint32_t (&b)[2]) {
  mma_m16n8k16_bf16(c, a, b);
}
SIAM_DEVICE void multiply_add_tile(math::Half, float (&c)[4], const uint32_t (&a)[4],
                                   const uint32_t (&b)[2]) {
  mma_m16n8k16_fp16(c, a, b);
}

template <class T>
struct Mma16Engine : MmaSums {
  using C = float;
  using Layout = MmaLayout;

  SIAM_DEVICE void step(int, int thread, const Shared<unsigned char>& stage) {
    uint32_t a[2][2][4];
    SIAM_UNROLL
    for (int half = 0; half < 2; ++half) {
      SIAM_UNROLL
      for (int m = 0; m < 2; ++m) load_a(stage, thread, 2 * half, m, a[half][m]);
    }
    SIAM_UNROLL
    for (int n = 0; n < Layout::kColumns / 4; ++n) {
      uint32_t b[2][2][2];
      load_b(stage, thread, 0, n, b[0]);
      load_b(stage, thread, 2, n, b[1]);
      SIAM_UNROLL
      for (int m = 0; m < 2; ++m) {
        SIAM_UNROLL
        for (int i = 0; i < 2; ++i) {
          float c[4] = {0, 0, 0, 0};
          multiply_add_tile(T{}, c, a[0][m], b[0][i]);
          multiply_add_tile(T{}, c, a[1][m], b[1][i]);
          add(m, 2 * n + i, c);
        }
      }
    }
  }
  SIAM_DEVICE void end() {}
};

// x = big + small, each an operand of TF32; three of the four products count.
struct Tf32x3Engine : MmaSums {
  using C = float;
  using Layout = MmaLayout;

  // Rounds half away from zero in two integer operations, as to_tf32 does in more; what it makes of
  // NaN does not matter, since x - big is NaN. The rest is cut.
  SIAM_DEVICE static void split(uint32_t& word, uint32_t& small) {
    constexpr uint32_t kKept = 0xFFFFE000u;
    const float x = __uint_as_float(word);
    word = (word + 0x1000u) & kKept;
    small = __float_as_uint(__fsub_rn(x, __uint_as_float(word))) & kKept;
  }

  SIAM_DEVICE void step(int, int thread, const Shared<unsigned char>& stage) {
    SIAM_NO_UNROLL  // two copies of it would not find the registers
        for (int chunk = 0; chunk < kStageChunks; chunk += 2) {
      uint32_t a[2][4], small_a[2][4];
      SIAM_UNROLL
      for (int m = 0; m < 2; ++m) {
        load_a(stage, thread, chunk, m, a[m]);
        SIAM_UNROLL
        for (int r = 0; r < 4; ++r) split(a[m][r], small_a[m][r]);
      }
      SIAM_UNROLL
      for (int n = 0; n < Layout::kColumns / 4; ++n) {
        uint32_t b[2][2], small_b[2][2];
        load_b(stage, thread, chunk, n, b);
        SIAM_UNROLL
        for (int r = 0; r < 4; ++r) split(b[r / 2][r % 2], small_b[r / 2][r % 2]);
        SIAM_UNROLL
        for (int m = 0; m < 2; ++m) {
          SIAM_UNROLL
          for (int i = 0; i < 2; ++i) {
            // The cross terms have a sum each, so that x·y and y·x are the same.
            float c[4] = {0, 0, 0, 0}, other[4] = {0, 0, 0, 0};
            mma_m16n8k8_tf32(c, small_a[m], b[i]);
            mma_m16n8k8_tf32(other, a[m], small_b[i]);
            SIAM_UNROLL
            for (int r = 0; r < 4; ++r) c[r] = __fadd_rn(c[r], other[r]);
            mma_m16n8k8_tf32(c, a[m], b[i]);
            add(m, 2 * n + i, c);
          }
        }
      }
    }
  }
  SIAM_DEVICE void end() {}
};

// kLong: D is above kTileDepth.
template <TileEngine kEngine, class T, bool kLong>
struct EngineOf {
  using type = FmaEngine<T, kLong && sizeof(T) != 8>;
};
template <class T, bool kLong>
struct EngineOf<TileEngine::kMma16, T, kLong> {
  using type = Mma16Engine<T>;
};
template <bool kLong>
struct EngineOf<TileEngine::kTf32x3, float, kLong> {
  using type = Tf32x3Engine;
};

template <class T, bool kLong>
struct EngineOf<TileEngine::kAbsolute, T, kLong> {
  using type = FmaEngine<T, sizeof(T) != 8, true>;
};
template <class T, bool kLong>
struct EngineOf<TileEngine::kBits, T, kLong> {
  using type = BitsEngine;
};

// Whether this pass of the compiler needs the kernel. What is left out is what math::tile_engine
// does not choose for the capability that tile_capability then reports.
template <TileEngine kEngine, class T>
constexpr bool kEngineCompiled = kEngine == TileEngine::kMma16 || kEngine == TileEngine::kTf32x3
                                     ? kTensorCores
                                     : sizeof(T) != 2 || kWidenedTiles;

// --- pairs that are computed directly
// --------------------------------------------------------------

template <class C>
struct DirectRule {
  C threshold, smallest, largest;
};

// Lane l of 16 gives one term of each of 16 sums, and gets the sum number l of 16 terms: halves are
// added 8, 4, 2, 1 apart, and with each step a lane keeps half as many sums.
template <int kHalf, class C>
SIAM_DEVICE void add_halves(C* sums) {
  const bool upper = (threadIdx.x & kHalf) != 0;
  SIAM_UNROLL
  for (int q = 0; q < kHalf; ++q) {
    const C keep = upper ? sums[q + kHalf] : sums[q];
    const C give = upper ? sums[q] : sums[q + kHalf];
    sums[q] = keep + __shfl_xor_sync(kWarp, give, kHalf);
  }
}

// Replaces those of the thread's pairs (i0..i0+3, j0..j0+3) that `wanted` names, bit 4 i + j, by
// the direct sum in the order of math::direct_squared_distance. Half a warp computes all 16 pairs
// of one thread at once, lane k mod 16 adding the terms of dimension k, for 8 loads of 64 bytes (in
// float) per 16 pairs and 16 dimensions: where a whole tile is direct, this is its micro-kernel.
template <class Engine, class T, int i0, int j0, class C>
SIAM_DEVICE void replace_direct(const TileArgs& args, const TilePlace& place, unsigned wanted,
                                int thread,
                                C (&d2)[Engine::Layout::kRows][Engine::Layout::kColumns]) {
  using Layout = typename Engine::Layout;
  const int lane = thread % 32, warp = thread / 32;
  unsigned owners = __ballot_sync(kWarp, wanted != 0);
  SIAM_NO_UNROLL
  while (owners != 0) {
    const int first = __ffs(static_cast<int>(owners)) - 1;
    owners &= owners - 1;
    const int second = owners != 0 ? __ffs(static_cast<int>(owners)) - 1 : first;
    owners &= owners - 1;
    const int owner = warp * 32 + (lane < 16 ? first : second);
    const T* x[4];
    const T* y[4];
    SIAM_UNROLL
    for (int i = 0; i < 4; ++i) {
      // Beyond the edge a row stands in for one that is not there, and nobody wants the result.
      const int row = Layout::row(owner, i0 + i), column = Layout::column(owner, j0 + i);
      x[i] = static_cast<const T*>(args.x1.data) + place.batch * args.x1.batch_step +
             (place.first_row + (row < place.rows_here ? row : 0)) * args.x1.row_step;
      y[i] = static_cast<const T*>(args.x2.data) + place.batch * args.x2.batch_step +
             (place.first_column + (column < place.columns_here ? column : 0)) * args.x2.row_step;
    }
    C sums[16];
    SIAM_UNROLL
    for (int p = 0; p < 16; ++p) sums[p] = 0;
    SIAM_NO_UNROLL
    for (int64_t k = lane % 16; k < args.dim; k += 16) {
      C a[4], b[4];
      SIAM_UNROLL
      for (int i = 0; i < 4; ++i) {
        a[i] = math::widen(load<T>(x[i] + k));
        b[i] = math::widen(load<T>(y[i] + k));
      }
      SIAM_UNROLL
      for (int p = 0; p < 16; ++p) {
        const C delta = minus(a[p / 4], b[p % 4]);
        sums[p] = fused(delta, delta, sums[p]);
      }
    }
    add_halves<8>(sums);
    add_halves<4>(sums);
    add_halves<2>(sums);
    add_halves<1>(sums);
    const int source = lane == second && second != first ? 16 : 0;
    const unsigned mine = lane == first || lane == second ? wanted : 0;
    SIAM_UNROLL
    for (int p = 0; p < 16; ++p) {
      const C sum = __shfl_sync(kWarp, sums[0], source + p);
      C& value = d2[i0 + p / 4][j0 + p % 4];
      value = (mine >> p & 1u) != 0 ? sum : value;
    }
  }
}

// From products to squared distances: the thread's `sums` become d2, rescued where they must be.
template <class Engine, class T, class C>
SIAM_DEVICE void finish_pairs(const TileArgs& args, const TilePlace& place,
                              const DirectRule<C>& rule,
                              C (&d2)[Engine::Layout::kRows][Engine::Layout::kColumns]) {
  using Layout = typename Engine::Layout;
  constexpr int kRows = Layout::kRows, kColumns = Layout::kColumns;
  constexpr int kBlocks = kRows * kColumns / 16, kAcross = kColumns / 4;
  static_assert(kBlocks == 2 || kBlocks == 4, "blocks of 4 x 4 pairs");
  const int thread = thread_afresh();
  const C* const norms1 =
      static_cast<const C*>(args.x1.norms) + place.batch * place.rows + place.first_row;
  const C* const norms2 =
      static_cast<const C*>(args.x2.norms) + place.batch * place.columns + place.first_column;
  unsigned wanted[kBlocks / 2] = {};  // 16 bits a block of 4 x 4
  C norm1[kRows];
  SIAM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const int row = Layout::row(thread, i);
    norm1[i] = row < place.rows_here ? load<C>(norms1 + row) : C(0);
  }
  SIAM_UNROLL
  for (int j = 0; j < kColumns; ++j) {
    const int column = Layout::column(thread, j);
    const bool column_here = column < place.columns_here;
    const C norm2 = column_here ? load<C>(norms2 + column) : C(0);
    SIAM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const bool here = column_here && Layout::row(thread, i) < place.rows_here;
      const C sum = norm1[i] + norm2;
      d2[i][j] = fused(C(-2), d2[i][j], sum);
      const bool direct =
          here && math::needs_direct(d2[i][j], sum, rule.threshold, rule.smallest, rule.largest);
      const int block = i / 4 * (kColumns / 4) + j / 4;
      wanted[block / 2] |= static_cast<unsigned>(direct) << (block % 2 * 16 + i % 4 * 4 + j % 4);
    }
  }
  replace_direct<Engine, T, 0, 0>(args, place, wanted[0] & 0xFFFFu, thread, d2);
  replace_direct<Engine, T, 1 / kAcross * 4, 1 % kAcross * 4>(args, place, wanted[0] >> 16, thread,
                                                              d2);
  if constexpr (kBlocks == 4) {
    replace_direct<Engine, T, 2 / kAcross * 4, 2 % kAcross * 4>(args, place, wanted[1] & 0xFFFFu,
                                                                thread, d2);
    replace_direct<Engine, T, 3 / kAcross * 4, 3 % kAcross * 4>(args, place, wanted[1] >> 16,
                                                                thread, d2);
  }
}

// --- the kernel ----------------------------------------------------------------------------------

// Blocks an SM must hold, which bounds the registers: see the table above.
template <TileEngine kEngine, class T, bool kLong>
constexpr int kTileMinBlocks =
    (kEngine == TileEngine::kFma32 && !kLong && sizeof(T) == 4) || kEngine == TileEngine::kBits ? 3
                                                                                                : 2;
// A sink with a member kProducts gets the sums of products x.y, and no pair is rescued.
template <class Sink, class = void>
constexpr bool kTakesProducts = false;
template <class Sink>
constexpr bool kTakesProducts<Sink, std::void_t<decltype(Sink::kProducts)>> = Sink::kProducts;
template <class Sink, class = void>
constexpr bool kTakesScratch = false;
template <class Sink>
constexpr bool kTakesScratch<Sink, std::void_t<decltype(Sink::kScratch)>> = Sink::kScratch;
template <class Sink, class = void>
constexpr bool kChoosesTiles = false;
template <class Sink>
constexpr bool kChoosesTiles<
    Sink, std::void_t<decltype(std::declval<const Sink&>().wants(std::declval<TilePlace>()))>> =
    true;
template <TileEngine kEngine>
constexpr int kEngineThreads =
    kEngine == TileEngine::kMma16 || kEngine == TileEngine::kTf32x3 ? MmaLayout::kThreads
                                                                    : FmaLayout::kThreads;

template <TileEngine kEngine, class T, bool kLong, class Sink>
SIAM_KERNEL(kEngineThreads<kEngine>, (kTileMinBlocks<kEngine, T, kLong>))
void tile_kernel(const TileArgs args, const DirectRule<typename math::Storage<T>::Compute> rule,
                 const bool aligned, const TileLaunch launch, const Sink sink) {
  if constexpr (kEngineCompiled<kEngine, T>) {
    using Engine = typename EngineOf<kEngine, T, kLong>::type;
    constexpr int kDimsOfStage = kStageRowBytes / sizeof(T);
    SIAM_SHARED(unsigned char, stages, kStages* kStageBytes);
    constexpr int kThreads = kEngineThreads<kEngine>;
    SIAM_SHARED(int64_t, number_memo, 4 * kThreads);
    SIAM_SHARED(const T*, row_memo, 2 * kThreads);
    const TileMemo<T, kThreads> memo{number_memo, row_memo};
    const int steps =  // a row of 2^31 stages has 128 GiB
        static_cast<int>(args.dim / kDimsOfStage + (args.dim % kDimsOfStage != 0));
    SIAM_NO_UNROLL
    for (int64_t tile = blockIdx.x; tile < launch.tiles; tile = memo.number(0) + gridDim.x) {
      int edge;
      {
        const TilePlace place = tile_place(args, launch, tile);
        remember_tile(args, place, tile, memo);
        if constexpr (kChoosesTiles<Sink>) {
          if (!sink.wants(place)) continue;
        }
        edge = place.rows_here | place.columns_here << 16;
      }
      Engine engine;
      engine.begin();
      const int thread = thread_afresh();
      __syncthreads();  // the last tile's stages are no longer read
      if (steps > 0) copy_stage(args, memo, edge, 0, aligned, stages + 0);
      cp_async_commit();
      SIAM_NO_UNROLL
      for (int step = 0; step < steps; ++step) {
        const int now = step % kStages * kStageBytes;
        // Behind the barrier this stage is full, and the other one is no longer read.
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < steps) {
          copy_stage(args, memo, edge, step + 1, aligned, stages + (kStageBytes - now));
        }
        cp_async_commit();
        engine.step(step, thread, stages + now);
      }
      engine.end();
      const TilePlace place = place_at(args, memo.number(1), memo.number(2), memo.number(3));
      if constexpr (kEngine != TileEngine::kAbsolute && kEngine != TileEngine::kBits &&
                    !kTakesProducts<Sink>) {
        finish_pairs<Engine, T>(args, place, rule, engine.sums);
      }
      if constexpr (kTakesScratch<Sink>) {
        sink.template take<typename Engine::Layout>(place, engine.sums, stages);
      } else {
        sink.template take<typename Engine::Layout>(place, engine.sums);
      }
    }
  }
}

// --- sinks ---------------------------------------------------------------------------------------

// Writes every distance. Bytes: P · R · sizeof(Out), in whole sectors where R is a multiple of 8.
template <class Out>
struct StoreSink {
  Out* out;     // [batch, P, R]
  bool paired;  // whether every row of it begins at a multiple of two elements

  template <class Layout, class C>
  SIAM_DEVICE void take(const TilePlace& place,
                        const C (&d2)[Layout::kRows][Layout::kColumns]) const {
    const int thread = thread_afresh();
    const int first = Layout::row(thread, 0);
    Out* line = out + (place.batch * place.rows + place.first_row + first) * place.columns +
                place.first_column;
    SIAM_UNROLL
    for (int i = 0; i < Layout::kRows; ++i) {
      if (i > 0) line += Layout::kRowStep * place.columns;
      if (first + i * Layout::kRowStep >= place.rows_here) break;
      SIAM_UNROLL
      for (int j = 0; j < Layout::kColumns; j += Layout::kRun) {
        const int column = Layout::column(thread, j);
        if constexpr (Layout::kRun == 2) {
          if (paired) {
            const Pack<Out, 2> pair{math::narrow<Out>(d2[i][j]), math::narrow<Out>(d2[i][j + 1])};
            if (column < place.columns_here) store(pair, line + column);
            continue;
          }
        }
        SIAM_UNROLL
        for (int r = 0; r < Layout::kRun; ++r) {
          if (column + r < place.columns_here) {
            store(math::narrow<Out>(d2[i][j + r]), line + column + r);
          }
        }
      }
    }
  }
};

// --- launchers -----------------------------------------------------------------------------------

template <class T>
void launch_row_norms(const TileMatrix& x, int64_t batch, int64_t dim, int multiprocessors,
                      Stream stream) {
  constexpr int64_t kRows = kTileThreads / kNormLanes;
  const int64_t total = batch * x.rows;
  if (total == 0) return;
  const int64_t blocks = total / kRows + (total % kRows != 0);
  const int64_t resident = static_cast<int64_t>(std::max(multiprocessors, 1)) * kRowBlocksPerSm;
  const Dim3 grid(static_cast<unsigned>(std::min(blocks, resident)));
  SIAM_LAUNCH((row_norms_kernel<T>), grid, Dim3(kTileThreads), 0, stream, x, batch, dim,
              tile_rows_aligned(x, batch, sizeof(T)));
}

template <class C>
DirectRule<C> direct_rule(TileEngine engine, int64_t dim) {
  return {static_cast<C>(math::tile_rescue_threshold(engine, dim)),
          static_cast<C>(math::tile_smallest_sum(engine, dim)),
          static_cast<C>(math::tile_largest_sum(engine))};
}

template <TileEngine kEngine, class T, class Sink>
void launch_tile_kernel(const TileArgs& args, const Sink& sink, const TileLaunch& launch,
                        Stream stream) {
  using C = typename math::Storage<T>::Compute;
  const DirectRule<C> rule = direct_rule<C>(kEngine, args.dim);
  const bool aligned = tile_chunks_aligned(args, sizeof(T));
  const Dim3 grid(launch.grid), block(kEngineThreads<kEngine>);
  if constexpr (kEngine == TileEngine::kFma32) {
    if (args.dim > math::kTileDepth) {
      SIAM_LAUNCH((tile_kernel<kEngine, T, true, Sink>), grid, block, 0, stream, args, rule,
                  aligned, launch, sink);
      return;
    }
  }
  SIAM_LAUNCH((tile_kernel<kEngine, T, false, Sink>), grid, block, 0, stream, args, rule, aligned,
              launch, sink);
}

// A step that no row takes may be anything; the kernel still multiplies by it.
inline TileMatrix without_idle_steps(TileMatrix x, int64_t batch) {
  if (x.rows <= 1) x.row_step = 0;
  if (batch <= 1) x.batch_step = 0;
  return x;
}

// The tiles alone; norms are there.
template <class T, class Sink>
void launch_tiles(TileArgs args, const Sink& sink, DType dtype, TileDevice device, Stream stream) {
  const TileLaunch launch =
      tile_launch(args.batch, args.x1.rows, args.x2.rows, device.multiprocessors);
  if (launch.tiles == 0) return;
  args.x1 = without_idle_steps(args.x1, args.batch);
  args.x2 = without_idle_steps(args.x2, args.batch);
  const TileEngine engine = math::tile_engine(dtype, args.dim, device.capability);
  if constexpr (sizeof(T) == 8) {
    launch_tile_kernel<TileEngine::kFma64, T>(args, sink, launch, stream);
  } else if constexpr (sizeof(T) == 4) {
    if (engine == TileEngine::kTf32x3) {
      launch_tile_kernel<TileEngine::kTf32x3, T>(args, sink, launch, stream);
    } else {
      launch_tile_kernel<TileEngine::kFma32, T>(args, sink, launch, stream);
    }
  } else {
    if (engine == TileEngine::kMma16) {
      launch_tile_kernel<TileEngine::kMma16, T>(args, sink, launch, stream);
    } else {
      launch_tile_kernel<TileEngine::kFma32, T>(args, sink, launch, stream);
    }
  }
}

}  // namespace siamcuda::cuda
