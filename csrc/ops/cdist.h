// squared_cdist: squared distances of all pairs as a tensor, batched and differentiable.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

namespace siamcuda::ops {

struct CdistBackend {
  // out [P, R] from x1 [P, D] and x2 [R, D].
  void (*forward)(const at::Tensor& x1, const at::Tensor& x2, at::Tensor& out);
  // gradient [P, D], in the type of the computation, of Σ weights·d²; weights and distances [P, R]
  // with the same strides.
  void (*backward)(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& weights,
                   const at::Tensor& distances, at::Tensor& gradient);
};
const CdistBackend& cpu_cdist_backend();

void define_cdist(torch::Library& m);
void implement_cdist_meta(torch::Library& m);
void implement_cdist_autograd(torch::Library& m);
void implement_cdist_cpu(torch::Library& m);

at::Tensor call_squared_cdist(const at::Tensor& x1, const at::Tensor& x2);

}  // namespace siamcuda::ops
