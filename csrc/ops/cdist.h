// squared_cdist: squared distances of all pairs as a tensor, batched and differentiable.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

namespace siamcuda::ops {

struct CdistBackend {
  at::Tensor (*empty)(at::IntArrayRef sizes, const at::TensorOptions& options);
  // out [N, P, R] from x1 [N, P, D] and x2 [N, R, D].
  void (*forward)(const at::Tensor& x1, const at::Tensor& x2, at::Tensor& out);
  // Fills the gradients that are defined, [N, P, D] and [N, R, D] in the type of the computation,
  // of Σ weights·d²; weights and distances [N, P, R] contiguous.
  void (*backward)(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& weights,
                   const at::Tensor& distances, std::array<at::Tensor, 2>& gradients);
};
const CdistBackend& cpu_cdist_backend();
const CdistBackend& cuda_cdist_backend();

void define_cdist(torch::Library& m);
void implement_cdist_meta(torch::Library& m);
void implement_cdist_autograd(torch::Library& m);
void implement_cdist(torch::Library& m, const CdistBackend& (*backend)());

at::Tensor call_squared_cdist(const at::Tensor& x1, const at::Tensor& x2);

}  // namespace siamcuda::ops
