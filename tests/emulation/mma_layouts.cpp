// Prints the layouts of cuda/mma_layout.h, a line an element, for test_mma_layouts.py:
//   tf32|half  a|b|c  lane register element  row column
//   ldmatrix   x4     lane register 0        source-lane source-byte
#include <cstdio>
#include <initializer_list>

#include "cuda/mma_layout.h"

int main() {
  using namespace siamcuda::cuda;
  for (const int elements : {1, 2}) {
    const char* const type = elements == 1 ? "tf32" : "half";
    for (int lane = 0; lane < 32; ++lane) {
      const auto print = [&](const char* operand, int r, int e, MatrixPlace place) {
        std::printf("%s %s %d %d %d %d %d\n", type, operand, lane, r, e, place.row, place.column);
      };
      for (int r = 0; r < 4; ++r) {
        for (int e = 0; e < elements; ++e) print("a", r, e, mma_a_place(elements, lane, r, e));
      }
      for (int r = 0; r < 2; ++r) {
        for (int e = 0; e < elements; ++e) print("b", r, e, mma_b_place(elements, lane, r, e));
      }
      for (int r = 0; r < 4; ++r) print("c", r, 0, mma_c_place(lane, r));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int m = 0; m < 4; ++m) {
      const LdmatrixSource source = ldmatrix_source(lane, m);
      std::printf("ldmatrix x4 %d %d 0 %d %d\n", lane, m, source.lane, source.byte);
    }
  }
}
