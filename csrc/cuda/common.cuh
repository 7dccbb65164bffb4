// What every row kernel uses: the inner steps, element readers, sums over lanes and over a block.
#pragma once

#include "cuda/launch.h"
#include "cuda/platform.cuh"
#include "math/formulas.h"
#include "math/labels.h"
#include "math/numerics.h"
#include "math/params.h"

namespace siamcuda::cuda {

using math::magnitude;
using math::sign;

// What math/steps.inl asks for, in one rounding; nothing is fused that does not ask (see setup.py).
SIAM_HOST_DEVICE float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
SIAM_HOST_DEVICE double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }
template <class T>
SIAM_HOST_DEVICE math::Dual<T> multiply_add(math::Dual<T> a, math::Dual<T> b, math::Dual<T> c) {
  return {multiply_add(a.value, b.value, c.value),
          multiply_add(a.value, b.tangent, multiply_add(a.tangent, b.value, c.tangent))};
}

#include "math/steps.inl"

constexpr unsigned kWarp = 0xffffffffu;

// Functions that are handed to the readers of math/labels.h, which also run on the host.
struct DeviceLoad {
  template <class T>
  SIAM_HOST_DEVICE T operator()(const T* p) const {
#if defined(__CUDA_ARCH__) || defined(SIAM_EMULATED)
    return load<T>(p);
#else
    return *p;
#endif
  }
};
struct DeviceStore {
  template <class T>
  SIAM_HOST_DEVICE void operator()(T value, T* p) const {
#if defined(__CUDA_ARCH__) || defined(SIAM_EMULATED)
    store(value, p);
#else
    *p = value;
#endif
  }
};

// Combines the sums of the `lanes` threads of a row; all 32 lanes of the warp take part.
template <class Row, class C, int kSums>
SIAM_DEVICE void meet(const StepContext<C>& step, C* sums, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    SIAM_UNROLL
    for (int k = 0; k < kSums; ++k) {
      const C other = __shfl_xor_sync(kWarp, sums[k], offset);
      if constexpr (!Row::Element::kVector) {
        const C p = static_cast<C>(step.p);
        if (p - p != 0 && !step.counting) {
          sums[k] = ElementStep<typename Row::Element>::extreme(p, sums[k], other);
          continue;
        }
      }
      sums[k] = sums[k] + other;
    }
  }
}

template <class Row, class C>
SIAM_DEVICE C first_sum(const StepContext<C>& step) {
  if constexpr (!Row::Element::kVector) {
    const C p = static_cast<C>(step.p);
    if (p < 0 && p - p != 0 && !step.counting) return -p;  // +inf, the identity of min
  }
  return C(0);
}

// The sum of one value per thread in a fixed order; the result is thread 0's.
SIAM_DEVICE double add_block(double value, const Shared<double>& warps) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(kWarp, value, offset);
  }
  __syncthreads();  // the last sum's readers are done
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kRowThreads / 32; ++w) {
      const double part = warps[w];
      total += part;
    }
  }
  return total;
}

SIAM_DEVICE void add_block_to(double* out, double value, const Shared<double>& warps) {
  const double total = add_block(value, warps);
  if (threadIdx.x == 0) store(total, out);
}

}  // namespace siamcuda::cuda
