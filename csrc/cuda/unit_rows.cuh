// Rows of unit length, and square roots. Kernel text for nvcc and for the emulator.
//
//                    unit_kernel                            root_kernel
//   a warp has       8 rows, four lanes each                32 numbers
//   registers        59                                     24
//   shared memory    none                                   none
//   blocks an SM     8                                      8
//   bytes            rows twice, the second time from L2;   x once, roots once
//                    what is written once
//   FLOPs            3 D a row, in double                   1
#pragma once

#include "cuda/entries.cuh"

namespace siamcuda::cuda {

// The norm is the root of Σ x² in double: element k goes to accumulator k mod 16, multiplied and
// then added; halves are added 8, 4, 2, 1. Elements are divided in double and rounded once. A
// row whose norm is 0 stays as it is.
template <class T>
SIAM_KERNEL(kSearchThreads, 8)
void unit_kernel(const UnitArgs args, const bool aligned) {
  using C = typename math::Storage<T>::Compute;
  constexpr int kRows = kSearchThreads / kPairLanes;
  const int lane = static_cast<int>(threadIdx.x) % kPairLanes;
  SIAM_NO_UNROLL
  for (int64_t first = int64_t{blockIdx.x} * kRows; first < args.rows.rows;
       first += int64_t{gridDim.x} * kRows) {
    const int64_t row = first + threadIdx.x / kPairLanes;
    const bool here = row < args.rows.rows;
    const T* const x =
        static_cast<const T*>(args.rows.data) + (here ? row : first) * args.rows.row_step;
    double sums[kPairElements] = {0, 0, 0, 0};
    C part[kPairElements];
    const auto load_part = [&](int64_t k) {
      if (aligned && k + math::kDirectLanes <= args.dim) {
        load_elements<true>(x + k, lane, args.dim - k, part);
      } else {
        load_elements<false>(x + k, lane, args.dim - k, part);
      }
    };
    SIAM_NO_UNROLL
    for (int64_t k = 0; k < args.dim; k += math::kDirectLanes) {
      load_part(k);
      SIAM_UNROLL
      for (int e = 0; e < kPairElements; ++e) {
        const double value = part[e];
        sums[e] = __dadd_rn(sums[e], __dmul_rn(value, value));
      }
    }
    const double norm = __dsqrt_rn(add_accumulators<C>(sums));
    SIAM_NO_UNROLL
    for (int64_t k = 0; k < (here ? args.dim : 0); k += math::kDirectLanes) {
      load_part(k);
      SIAM_UNROLL
      for (int e = 0; e < kPairElements; ++e) {
        const int64_t at = k + pair_element<C>(lane, e);
        const double value = part[e];
        if (at < args.dim) {
          store(static_cast<C>(norm == 0 ? value : __ddiv_rn(value, norm)),
                static_cast<C*>(args.out) + row * args.dim + at);
        }
      }
    }
  }
}

template <class C>
SIAM_KERNEL(kSearchThreads, 8)
void root_kernel(const C* x, C* out, const int64_t count) {
  SIAM_NO_UNROLL
  for (int64_t i = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kSearchThreads) {
    const C value = load<C>(x + i);
    if constexpr (sizeof(C) == 8) {
      store(__dsqrt_rn(value), out + i);
    } else {
      store(__fsqrt_rn(value), out + i);
    }
  }
}

template <class T>
void launch_unit_rows_typed(UnitArgs args, TileDevice device, Stream stream) {
  if (args.rows.rows == 0 || args.dim == 0) return;
  args.rows = without_idle_steps(args.rows, 1);
  const int64_t blocks = pieces_of(args.rows.rows, kSearchThreads / kPairLanes);
  const int64_t resident = static_cast<int64_t>(std::max(device.multiprocessors, 1)) * 8;
  SIAM_LAUNCH((unit_kernel<T>), Dim3(static_cast<unsigned>(std::min(blocks, resident))),
              Dim3(kSearchThreads), 0, stream, args, tile_rows_aligned(args.rows, 1, sizeof(T)));
}

template <class C>
void launch_root_typed(const void* x, void* out, int64_t count, TileDevice device, Stream stream) {
  if (count == 0) return;
  const int64_t blocks = pieces_of(count, kSearchThreads);
  const int64_t resident = static_cast<int64_t>(std::max(device.multiprocessors, 1)) * 8;
  SIAM_LAUNCH((root_kernel<C>), Dim3(static_cast<unsigned>(std::min(blocks, resident))),
              Dim3(kSearchThreads), 0, stream, static_cast<const C*>(x), static_cast<C*>(out),
              count);
}

}  // namespace siamcuda::cuda
