// Where the elements of a tensor-core operation lie: the fragment layouts of mma.sync.m16n8k8
// (32-bit elements) and m16n8k16 (16-bit elements), and of ldmatrix, as the PTX documentation gives
// them. Plain C++: the kernels index by it, and the emulator's twins are made from it. A test
// compares it with the traits of CuTe.
//
// With E elements in a 32-bit register (1 or 2), K = 8 E:
//   A [16, K], 4 registers    row-major
//   B [K, 8], 2 registers     column-major, which is row-major [8, K]
//   C [16, 8], 4 registers    one float each
#pragma once

#include "math/numerics.h"

namespace siamcuda::cuda {

constexpr int kMmaRows = 16, kMmaColumns = 8;

struct MatrixPlace {
  int row;
  int column;
};

// Element `e` of register `r` of a lane.
SIAM_HOST_DEVICE constexpr MatrixPlace mma_a_place(int elements, int lane, int r, int e) {
  return {lane / 4 + 8 * (r % 2), (lane % 4 + 4 * (r / 2)) * elements + e};
}
SIAM_HOST_DEVICE constexpr MatrixPlace mma_b_place(int elements, int lane, int r, int e) {
  return {(lane % 4 + 4 * r) * elements + e, lane / 4};
}
SIAM_HOST_DEVICE constexpr MatrixPlace mma_c_place(int lane, int r) {
  return {lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2};
}

// ldmatrix.x4 loads four matrices of 8 rows of 16 bytes; lane 8 m + i gives the address of row i of
// matrix m. Register m of a lane receives these 4 bytes of it.
struct LdmatrixSource {
  int lane;  // who gave the address of the row
  int byte;  // in the row
};
SIAM_HOST_DEVICE constexpr LdmatrixSource ldmatrix_source(int lane, int m) {
  return {8 * m + lane / 4, 4 * (lane % 4)};
}

}  // namespace siamcuda::cuda
