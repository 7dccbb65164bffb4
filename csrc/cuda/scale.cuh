// Gradients that forward made, times the upstream gradient of the loss: see Note [Gradients made in
// forward] in csrc/ops/loss_op.h. The factor is on the device, where the host would have to wait
// for it; as a rule it is 1, and every thread returns after one load.
//
//   per thread       accesses of 16 bytes, strided by the grid
//   registers        bounded to 64
//   occupancy        16 blocks of 128 threads an SM: 32 KB an SM in flight
//   bytes            none for a factor of 1; otherwise every gradient read and written once
//   FLOPs            1 an element
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/platform.cuh"
#include "cuda/scale.h"

namespace siamcuda::cuda {

// A gradient of 0 stays 0 under any factor, as that of an inactive row does: 0 · inf is NaN.
template <class T>
SIAM_DEVICE T scaled(T gradient, T factor) {
  return gradient == 0 ? gradient : gradient * factor;
}

template <class T>
struct alignas(kAccessBytes) ScalePack {
  static constexpr int kElements = kAccessBytes / sizeof(T);
  T element[kElements];
};

template <class T>
SIAM_KERNEL(kRowThreads, 8)
void scale_kernel(const ScaleArgs args) {
  constexpr int kElements = ScalePack<T>::kElements;
  const T factor = load<T>(static_cast<const T*>(args.upstream));
  if (factor == 1) return;
  const int64_t thread = blockIdx.x * int64_t{kRowThreads} + threadIdx.x;
  const int64_t stride = gridDim.x * int64_t{kRowThreads} * kElements;
  SIAM_UNROLL
  for (int j = 0; j < kMaxInputs; ++j) {
    T* const gradient = static_cast<T*>(args.gradient[j]);
    const bool aligned = reinterpret_cast<uintptr_t>(gradient) % kAccessBytes == 0;
    SIAM_NO_UNROLL
    for (int64_t i = thread * kElements; i < args.count[j]; i += stride) {
      if (aligned && i + kElements <= args.count[j]) {
        ScalePack<T> pack = load<ScalePack<T>>(gradient + i);
        SIAM_UNROLL
        for (int e = 0; e < kElements; ++e) pack.element[e] = scaled(pack.element[e], factor);
        store(pack, gradient + i);
        continue;
      }
      SIAM_UNROLL
      for (int e = 0; e < kElements; ++e) {
        if (i + e < args.count[j]) {
          store(scaled(load<T>(gradient + i + e), factor), gradient + i + e);
        }
      }
    }
  }
}

template <class T>
void launch_scale_typed(const ScaleArgs& args, int multiprocessors, Stream stream) {
  int64_t most = 0;
  for (const int64_t count : args.count) most = std::max(most, count);
  if (most == 0) return;
  constexpr int64_t kElements = ScalePack<T>::kElements * kRowThreads;  // of a block
  const int64_t blocks = most / kElements + (most % kElements != 0);
  const int64_t resident = static_cast<int64_t>(std::max(multiprocessors, 1)) * kRowBlocksPerSm;
  SIAM_LAUNCH((scale_kernel<T>), Dim3(static_cast<unsigned>(std::min(blocks, resident))),
              Dim3(kRowThreads), 0, stream, args);
}

}  // namespace siamcuda::cuda
