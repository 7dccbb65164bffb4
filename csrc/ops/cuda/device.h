// The few things that a launch asks of torch, and what the emulator has in their place.
#pragma once

#include <ATen/ATen.h>

#if defined(SIAM_EMULATED)
#include <vector>

#include "emulator.h"
#else
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace siamcuda::ops {

#if defined(SIAM_EMULATED)

struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor&) {}
};
inline void* current_stream() { return nullptr; }
inline int current_device() { return 0; }

// Tells the emulator which memory a launch may touch, for as long as this lives.
class LaunchMemory {
 public:
  void reads(const at::Tensor& t, const char* name) { add(t, emulator::Access::read, name); }
  void writes(const at::Tensor& t, const char* name) { add(t, emulator::Access::write, name); }
  // Written by one launch and read by the next; not every byte need be used.
  void scratch(const at::Tensor& t, const char* name) {
    if (t.numel() == 0) return;
    auto* data = static_cast<char*>(t.mutable_data_ptr());
    std::memset(data, 0xff, t.nbytes());
    inputs_.emplace_back(data, t.nbytes(), emulator::Access::write, name);
  }
  // Holds values already, which launches may change.
  void changes(const at::Tensor& t, const char* name) {
    if (t.numel() == 0) return;
    inputs_.emplace_back(t.mutable_data_ptr(), t.nbytes(), emulator::Access::read_write, name);
  }
  // Every byte of an output must have been written by now.
  void check_written() const {
    for (const auto& buffer : outputs_) {
      TORCH_CHECK(buffer.unwritten_bytes() == 0, "a kernel left ", buffer.unwritten_bytes(),
                  " bytes of an output unwritten");
    }
  }

 private:
  void add(const at::Tensor& t, emulator::Access access, const char* name) {
    if (!t.defined() || t.numel() == 0) return;
    // From the first element to the last: a strided view must not reach past its own elements.
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    const size_t bytes = (last + 1) * t.element_size();
    auto* data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
    if (access == emulator::Access::write) {
      std::memset(data, 0xff, bytes);
      outputs_.emplace_back(data, bytes, access, name);
    } else {
      inputs_.emplace_back(data, bytes, access, name);
    }
  }
  std::vector<emulator::Buffer> inputs_, outputs_;
};

#else

struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor& t) : guard(t.device()) {}
  c10::cuda::CUDAGuard guard;
};
inline void* current_stream() { return at::cuda::getCurrentCUDAStream().stream(); }
inline int current_device() { return at::cuda::current_device(); }

class LaunchMemory {
 public:
  void reads(const at::Tensor&, const char*) {}
  void writes(const at::Tensor&, const char*) {}
  void scratch(const at::Tensor&, const char*) {}
  void changes(const at::Tensor&, const char*) {}
  void check_written() const {}
};

#endif

}  // namespace siamcuda::ops
