// The tile engine's data between the torch-facing code and the kernels of one instruction set.
#pragma once

#include <cstdint>

#include "math/params.h"

namespace siamcuda::cpu {

// Rows of a tensor as the kernels read them: [rows, columns], columns contiguous.
struct Matrix {
  const void* data;
  int64_t rows;
  int64_t columns;
  int64_t step;  // elements from one row to the next
  DType dtype;
};

// How an instruction set cuts the work; depends on the number of columns and the type alone, so
// that no result depends on the batch.
struct TileGeometry {
  int64_t panel_rows;     // rows of a register tile: the unit of work
  int64_t panel_columns;  // columns of a register tile
  int64_t padded;         // D, rounded up to whole register tiles
  int64_t block;          // columns of the matrix of distances that are in the cache together
  int64_t meeting;        // rows of a block that meets others: whole panels, of rows and of columns
  int64_t scratch_step;   // elements from one row of a tile to the next
};

// Some rows of a matrix, ready to be the columns of tiles. C is the type of the computation.
template <class C>
struct Packed {
  int64_t first;    // row of the matrix that comes first
  int64_t count;    // rows
  C* panels;        // [⌈count / panel_columns⌉][D][panel_columns], zeros behind
  C* copy;          // [count rounded up to panel_columns][padded], zeros behind and for rows that
                    // are not finite; or null, if the matrix itself has such rows
  const C* rows;    // `copy`, or the matrix's own rows: as far as `count`
  C* norms;         // [count rounded up] Σx², NaN or inf for rows that are not finite
  uint8_t* finite;  // [count rounded up]
  // bfloat16 alone, where the CPU has VDPBF16PS, else null: two elements of a column side by side,
  // [⌈count / panel_columns⌉][⌈D / 2⌉][panel_columns].
  uint32_t* pairs;
};

}  // namespace siamcuda::cpu
