// Squared distances of all pairs: what every tile engine agrees on.
//
// A tile computes |x|² + |y|² − 2x·y, since a sum of products is what matrix units and register
// blocking are fast at. Where the two points are close that form loses everything it had, so pairs
// below a threshold are *rescued*: computed again as Σ(x−y)². The threshold comes from the error
// bound, not from data, so the decision for a pair depends on the pair alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "math/numerics.h"
#include "math/params.h"

namespace siamcuda::math {

// Products are added in blocks of this many columns, each from zero: a bound on the chain of
// roundings at any D, and the depth for which packed operands stay in the first-level cache.
constexpr int kTileDepth = 128;

// Relative error that any squared distance may have: DESIGN promises 1e-3.
constexpr double kTileTolerance = 1e-3;

// The largest |error of d²| / (|x|² + |y|²) of the expanded form, for a unit roundoff u:
//   - a chain of n fused multiply-adds is within n·u·Σ|x_k·y_k| of the sum, and the blocks add
//     ⌈D/128⌉ roundings more; 2Σ|x_k·y_k| ≤ |x|² + |y|²;
//   - norms are summed in double and rounded once: u; their sum: u; the last fused multiply-add,
//     of a result no larger than 2(|x|² + |y|²): 2u.
SIAM_HOST_DEVICE double tile_error(int64_t columns, double roundoff) {
  const int64_t chain = columns < kTileDepth ? columns : kTileDepth;
  const int64_t blocks = (columns + kTileDepth - 1) / kTileDepth;
  return static_cast<double>(chain + blocks + 4) * roundoff;
}

// A pair with d² below this share of |x|² + |y|² is rescued. 5 % more than the bound asks for,
// since d² itself is the computed one.
SIAM_HOST_DEVICE double tile_rescue_threshold(int64_t columns, double roundoff) {
  return 1.05 * tile_error(columns, roundoff) / kTileTolerance;
}

// --- engines of CUDA -----------------------------------------------------------------------------
// Those with a threshold tau = 1.05 eps / tolerance keep what has d² ≥ (tau − eps) of the norms in
// truth, so with a relative error of at most eps / (tau − eps) ≤ tolerance.
//
// Note [Error bounds]. u = 2^-24, S = Σ |x_k y_k| ≤ (|x|² + |y|²) / 2. An error of e · S in x·y is
// one of 2 e S ≤ e · (|x|² + |y|²) in d², so eps is e, and 4 u for norms and the last operations,
// as in tile_error. Second orders of all of this are less than the 5 % of the threshold while eps
// is below 0.05; above, tau is above 2 and every pair is direct.
//   kFma32  is tile_error.
//   kMma16  products of bf16 or fp16 are exact. A tensor core cuts each addend, and its sum, off at
//           the largest one's last place (2 u), perhaps once for each 4 products: at most 3/2 K
//           cuts for an instruction of depth K = 16, 3 K u = 48 u. Two of them in a chain, 96 u;
//           then ceil(D / 32) roundings to nearest where these sums are added.
//   kTf32x3 x = b + s + r, with b rounded to 11 bits, s the first 11 bits of the rest, and |r| ≤
//           2^-23 |x|. s s' and what has an r are left out: 2^-22 S each, 8 u. b b' + (s b' + b s')
//           is one instruction of depth 8: 24 u; the cross terms are below 2^-10 of it, and so are
//           their errors: 1 u. Then ceil(D / 8) roundings.
//   kFma64  a chain of multiply-adds in double, over all of D.
// Underflow adds 2^-126 a product at most, and is kept below u by asking for norms of at least
// D · 2^-96 (D · 2^-960 in double); see tile_smallest_sum.
//
// Both sides of every operation commute, products as well as sums: d²(x, y) and d²(y, x) have the
// same bits. kTf32x3 adds its two cross terms by themselves for that reason.

// kAbsolute sums |x - y| and kBits counts bits that differ; neither is ever chosen here: who wants
// those sums asks for them.
enum class TileEngine : int32_t { kFma32, kFma64, kMma16, kTf32x3, kAbsolute, kBits };

constexpr int kDirectLanes = 16;  // accumulators of the direct sum
constexpr int kMinTf32Dim = 32;   // below, splitting costs more than the products save

// The one place where the engine is chosen: never by how many rows there are. `capability` is 10 ·
// major + minor of the GPU, or 0 for a CPU.
//
// TF32 × 3 is faster than FFMA only where tensor cores do TF32 at several times the rate of FFMA:
// 8 times on sm_80 and, through mma.sync, about 4 on sm_90. GeForce parts have the same rate for
// both, and sm_100 reaches its own only by other instructions.
inline TileEngine tile_engine(DType dtype, int64_t dim, int capability) {
  switch (dtype) {
    case DType::kFloat64: return TileEngine::kFma64;
    case DType::kFloat32:
      return (capability == 80 || capability == 90) && dim >= kMinTf32Dim ? TileEngine::kTf32x3
                                                                          : TileEngine::kFma32;
    case DType::kFloat16:
    case DType::kBFloat16: return capability >= 80 ? TileEngine::kMma16 : TileEngine::kFma32;
  }
  return TileEngine::kFma32;
}

// eps of Note [Error bounds].
inline double tile_error_bound(TileEngine engine, int64_t dim) {
  const auto pieces = [dim](int64_t size) {
    return static_cast<double>(dim / size + (dim % size != 0));
  };
  const double d = static_cast<double>(dim);
  constexpr double kFloat = 0x1p-24, kDouble = 0x1p-53;
  switch (engine) {
    case TileEngine::kFma32: return tile_error(dim, kFloat);
    case TileEngine::kMma16: return (96 + pieces(32) + 4) * kFloat;
    case TileEngine::kTf32x3: return (8 + 24 + 1 + pieces(8) + 4) * kFloat;
    case TileEngine::kFma64: return (d + 4) * kDouble;
    case TileEngine::kAbsolute:
    case TileEngine::kBits: break;
  }
  return 1;
}

// The relative error that any distance may have. Who asks for double wants more of it.
inline double tile_tolerance(TileEngine engine) {
  return engine == TileEngine::kFma64 ? 1e-9 : kTileTolerance;
}

// tau: a pair is computed directly where d² < tau · (|x|² + |y|²).
inline double tile_rescue_threshold(TileEngine engine, int64_t dim) {
  return 1.05 * tile_error_bound(engine, dim) / tile_tolerance(engine);
}

// |x|² + |y|² outside [smallest, largest], or NaN, makes a pair direct as well: products may
// underflow by more than the bound allows, or sums overflow that the difference would not.
inline double tile_smallest_sum(TileEngine engine, int64_t dim) {
  const double d = static_cast<double>(std::max<int64_t>(dim, 1));
  return d * (engine == TileEngine::kFma64 ? 0x1p-960 : 0x1p-96);
}
inline double tile_largest_sum(TileEngine engine) {
  return engine == TileEngine::kFma64 ? 0x1p1020 : 0x1p124;
}

// Whether a pair whose engine gave `d2` and whose norms add up to `sum` is computed again.
template <class C>
SIAM_HOST_DEVICE bool needs_direct(C d2, C sum, C threshold, C smallest, C largest) {
  return !(d2 >= threshold * sum && sum >= smallest && sum <= largest);
}

// The direct sum, by definition: accumulator k mod 16 takes fma(δ, δ, accumulator) for k ascending,
// and halves are added, 8, 4, 2, 1. This is the reference for tests and for single pairs; kernels
// spread the accumulators over lanes.
template <class T>
auto direct_squared_distance(const T* x, const T* y, int64_t dim) {
  using C = typename Storage<T>::Compute;
  C sums[kDirectLanes] = {};
  for (int64_t k = 0; k < dim; ++k) {
    const C delta = static_cast<C>(widen(x[k])) - static_cast<C>(widen(y[k]));
    sums[k % kDirectLanes] = std::fma(delta, delta, sums[k % kDirectLanes]);
  }
  for (int half = kDirectLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
  }
  return sums[0];
}

}  // namespace siamcuda::math
