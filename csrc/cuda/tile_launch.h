// The CUDA tile engine as host code sees it: arguments, launch shapes and typed launchers.
// No torch and no CUDA headers; `stream` is a cudaStream_t.
#pragma once

#include <algorithm>
#include <cstdint>

#include "math/params.h"
#include "math/tiles.h"

namespace siamcuda::cuda {

constexpr int kTileRows = 64, kTileColumns = 128;  // pairs of one block
constexpr int kTileThreads = 128;
constexpr int kTileBand = 8;
constexpr int kTileBlocksPerSm = 4;  // at least what is resident, whichever engine runs

// A batch of matrices: dimensions lie side by side, rows and matrices anywhere.
struct TileMatrix {
  const void* data;  // [batch, rows, dim] through the steps, in elements
  int64_t rows;
  int64_t row_step;
  int64_t batch_step;
  void* norms;  // [batch, rows], float, or double for float64: |row|²
};

struct TileArgs {
  TileMatrix x1;  // rows of a tile
  TileMatrix x2;  // columns of a tile
  int64_t batch;
  int64_t dim;
};

// Tiles are numbered batch-major, then by bands of kTileBand tiles of rows; within a band down,
// then across, so that blocks that run side by side share rows as well as columns in L2. The grid
// strides over the numbers.
struct TileLaunch {
  int64_t row_tiles;
  int64_t column_tiles;
  int64_t tiles;
  unsigned grid;
};

inline TileLaunch tile_launch(int64_t batch, int64_t rows, int64_t columns, int multiprocessors) {
  TileLaunch launch{};
  launch.row_tiles = rows / kTileRows + (rows % kTileRows != 0);
  launch.column_tiles = columns / kTileColumns + (columns % kTileColumns != 0);
  launch.tiles = batch * launch.row_tiles * launch.column_tiles;
  const int64_t resident = static_cast<int64_t>(std::max(multiprocessors, 1)) * kTileBlocksPerSm;
  launch.grid = static_cast<unsigned>(std::min(launch.tiles, resident));
  return launch;
}

// Whether every row begins at a multiple of 16 bytes. Changes the loads, not the arithmetic.
inline bool tile_rows_aligned(const TileMatrix& x, int64_t batch, int element_bytes) {
  const auto aligned = [element_bytes](int64_t step) { return step * element_bytes % 16 == 0; };
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.rows <= 1 || aligned(x.row_step)) &&
         (batch <= 1 || aligned(x.batch_step));
}

// Whether rows consist of whole chunks of 16 bytes besides, as asynchronous copies ask: one that
// fills up with zeros may still read all 16, and so past the end of an array.
inline bool tile_chunks_aligned(const TileArgs& args, int element_bytes) {
  return args.dim * element_bytes % 16 == 0 &&
         tile_rows_aligned(args.x1, args.batch, element_bytes) &&
         tile_rows_aligned(args.x2, args.batch, element_bytes);
}

struct TileDevice {
  int multiprocessors;
  int capability;  // 10 · major + minor, as far as code for it is there: see tile_capability
};

// Squared distances of all pairs to `out`, [batch, P, R] contiguous, of out_dtype: that of the
// inputs, or float32 for 16-bit inputs. Norms are there: see launch_norms.
void launch_squared_cdist(const TileArgs& args, DType dtype, void* out, DType out_dtype,
                          TileDevice device, void* stream);

// What of the current device's capability the code in this library can use. Does not synchronise;
// the answer for a device does not change.
int tile_capability(int device);

}  // namespace siamcuda::cuda
