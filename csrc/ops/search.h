// Exact search: the k nearest rows, or all within a radius, as torch operators without gradients.
//
// An operator sees one part of a gallery at a time, so that galleries that are streamed, sharded or
// grown in steps go through the same door: `gallery_knn` updates lists that earlier parts gave.
// Lists hold squared distances (hamming: counts), ordered by (distance, position): finite ones,
// +inf, NaN, then padding, which is (+inf, -1), or (2^31 - 1, -1) where distances are counts.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "math/numerics.h"

namespace siamcuda::ops {

enum class Metric { kSquaredEuclidean, kEuclidean, kCosine, kHamming };

// One part of a gallery and who asks for it. Rows are [N, D] of any step, columns contiguous;
// queries [Q, D] contiguous, in the type of the computation: float for 16-bit rows, else that of
// the rows. For cosine both are of unit length, or zeros for a zero vector.
struct SearchPart {
  at::Tensor queries;
  at::Tensor rows;
  // What gallery_screen made of the rows and, last, the center that it was given; or nothing.
  std::vector<at::Tensor> screen;
  int64_t first;  // position of the part's first row
  Metric metric;
};

struct SearchBackend {
  // [N, D] in the type of the computation: rows of unit length, zeros for a zero vector.
  at::Tensor (*normalize)(const at::Tensor& rows);
  // What screening reads instead of rows, given the center [D] that codes are counted from. Nothing
  // where this machine would not use it.
  std::vector<at::Tensor> (*screen)(const at::Tensor& rows, const at::Tensor& center);
  // Updates distances [Q, k] and positions [Q, k], which are contiguous.
  void (*knn)(const SearchPart& part, at::Tensor& distances, at::Tensor& positions);
  // counts [Q], then distances and positions of all queries in turn, by (distance, position). The
  // radius is in the metric's own unit, the distances are squared.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> (*range)(const SearchPart& part, double radius);
  // Square roots, correctly rounded.
  at::Tensor (*root)(const at::Tensor& x);
  // Bits that differ, [...] int32 from two [..., bytes] of one shape. Null: by torch's operators.
  at::Tensor (*hamming)(const at::Tensor& x1, const at::Tensor& x2);
};
// The largest distance (squared, or a count) that is below a radius in the metric's own unit, -1 if
// none is. What lies within is a question of that number alone, since the units keep the order.
template <class C>
C largest_within(Metric metric, double radius) {
  if constexpr (std::is_integral_v<C>) {
    constexpr double kMost = std::numeric_limits<C>::max() - 1;
    return radius > 0 ? static_cast<C>(std::min(std::ceil(radius) - 1, kMost)) : C(-1);
  } else {
    const auto within = [&](C squared) {
      const C unit = metric == Metric::kEuclidean ? std::sqrt(squared)
                     : metric == Metric::kCosine  ? C(0.5) * squared
                                                  : squared;
      return static_cast<double>(unit) < radius;
    };
    using Bits = std::conditional_t<sizeof(C) == 8, uint64_t, uint32_t>;
    if (!within(C(0))) return C(-1);
    Bits low = 0, high = math::bit_cast<Bits>(std::numeric_limits<C>::infinity());
    while (low < high) {  // numbers that are not negative are ordered as their bits
      const Bits middle = low + (high - low + 1) / 2;
      if (within(math::bit_cast<C>(middle))) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return math::bit_cast<C>(low);
  }
}

const SearchBackend& cpu_search_backend();
const SearchBackend& cuda_search_backend();

void define_search(torch::Library& m);
void implement_search_meta(torch::Library& m);
void implement_search(torch::Library& m, const SearchBackend& (*backend)());

}  // namespace siamcuda::ops
