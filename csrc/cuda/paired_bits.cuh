// Bits that differ between paired rows of packed bits. Kernel text for nvcc and for the emulator.
//
// Four lanes a pair, 16 bytes of either row at a time, 8 pairs a warp; 43 registers, no shared
// memory, 8 blocks an SM. Bytes: both rows once, 4 a pair. A count of 32 bits and two more
// operations for each 4 bytes.
#pragma once

#include "cuda/entries.cuh"

namespace siamcuda::cuda {

template <int kUnused = 0>
SIAM_KERNEL(kSearchThreads, 8)
void hamming_kernel(const HammingArgs args, const bool aligned) {
  constexpr int kRows = kSearchThreads / kPairLanes;
  SIAM_NO_UNROLL
  for (int64_t first = int64_t{blockIdx.x} * kRows; first < args.x1.rows;
       first += int64_t{gridDim.x} * kRows) {
    const int64_t row = first + threadIdx.x / kPairLanes;
    const bool here = row < args.x1.rows;
    const int64_t at = here ? row : first;
    const math::Bits* const x[1] = {static_cast<const math::Bits*>(args.x1.data) +
                                    at * args.x1.row_step};
    int32_t count[1];
    DirectPairs<math::Bits, 1>::distances(
        x, static_cast<const math::Bits*>(args.x2.data) + at * args.x2.row_step, args.dim, aligned,
        count);
    if (here && threadIdx.x % kPairLanes == 0) store(count[0], args.out + row);
  }
}

inline void launch_hamming_rows(const HammingArgs& args, TileDevice device, Stream stream) {
  if (args.x1.rows == 0) return;
  const int64_t blocks = pieces_of(args.x1.rows, kSearchThreads / kPairLanes);
  const int64_t resident = static_cast<int64_t>(std::max(device.multiprocessors, 1)) * 8;
  SIAM_LAUNCH((hamming_kernel<0>), Dim3(static_cast<unsigned>(std::min(blocks, resident))),
              Dim3(kSearchThreads), 0, stream, args, pairs_aligned<math::Bits>(args.x1, args.x2));
}

}  // namespace siamcuda::cuda
