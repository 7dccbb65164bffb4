// The one file that knows which compiler kernel text meets: nvcc, or g++ with -DSIAM_EMULATED,
// which runs it under tests/emulation (async_copy.cuh and tensor_core.cuh do so for instructions of
// their own). Kernels use native CUDA names where both sides can have them (threadIdx,
// __syncthreads, __shfl_xor_sync, atomicAdd, float4, ...) and the names below for the rest. Rules
// for kernel text, in namespace siamcuda:
//
//   template <class T>
//   SIAM_KERNEL(256, 2) void scale_kernel(const T* x, T* y, std::int64_t n) {
//     SIAM_SHARED(float, tile, 256);        // float tile[256]; its type is Shared<float>
//     SIAM_DYNAMIC_SHARED(float, rows);     // one per kernel; cut it with rows + n, shared_cast<U>
//     auto pack = load<Pack<T, 4>>(x + i);  // every global access is a load or a store,
//     store(pack, y + i);                   //   each of which is one instruction of sizeof(pack)
//     float v = tile[threadIdx.x];          // never `auto v`: emulated, tile[i] is a proxy
//     auto quad = load_shared<float4>(tile, 4 * i);  // the index counts elements of the array
//   }
//   SIAM_LAUNCH((scale_kernel<float>), grid, block, shared_bytes, stream, x, y, n);
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(SIAM_EMULATED)
#include "emulator.h"
#elif defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#error "kernel text needs nvcc, or g++ with -DSIAM_EMULATED and tests/emulation as include path"
#endif

namespace siamcuda::cuda {

// A value of a vector access of elements T: T itself, or a plain struct of one access width. Bytes
// may be read as anything.
template <class V, class T>
struct AccessOf {
  static_assert(std::is_trivially_copyable_v<V>, "a memory access moves plain values");
  static_assert(sizeof(V) == 1 || sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 ||
                    sizeof(V) == 16,
                "one access moves 1, 2, 4, 8 or 16 bytes");
  static_assert(!std::is_arithmetic_v<V> || std::is_same_v<V, std::remove_cv_t<T>> ||
                    std::is_same_v<std::remove_cv_t<T>, unsigned char>,
                "a scalar is loaded and stored as the type of the array");
  static_assert(sizeof(V) % sizeof(T) == 0, "an access covers whole elements");
  static constexpr bool allowed = true;
};

}  // namespace siamcuda::cuda

#if defined(SIAM_EMULATED)

#define SIAM_KERNEL(max_threads, min_blocks)
#define SIAM_DEVICE inline
#ifndef SIAM_HOST_DEVICE
#define SIAM_HOST_DEVICE inline
#endif
#define SIAM_UNROLL
#define SIAM_NO_UNROLL

// A static of its own tells apart declarations and template instances, as __shared__ does.
#define SIAM_SHARED(T, name, ...)                                \
  static const char name##_key = 0;                              \
  const auto name = ::siamcuda::emulator::static_shared<T>(      \
      &name##_key, #name, static_cast<std::size_t>(__VA_ARGS__), \
      ::siamcuda::emulator::Site(__FILE__, __LINE__))
#define SIAM_DYNAMIC_SHARED(T, name)                         \
  const auto name = ::siamcuda::emulator::dynamic_shared<T>( \
      #name, ::siamcuda::emulator::Site(__FILE__, __LINE__))

#define SIAM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                              \
  ((void)(stream),                                                                               \
   ::siamcuda::emulator::launch(#kernel, ::siamcuda::emulator::Site(__FILE__, __LINE__), kernel, \
                                grid, block, shared_bytes, __VA_ARGS__))

namespace siamcuda::cuda {

using Stream = int;
inline Stream native_stream(void*) { return 0; }
using Dim3 = dim3;

template <class T>
using Shared = emulator::SharedPointer<T>;

template <class V, class T>
V load(const T* pointer, SIAM_EMULATOR_SITE) {
  static_assert(AccessOf<V, T>::allowed);
  return emulator::load_global<V>(pointer, SIAM_EMULATOR_HERE);
}
template <class V, class T>
V load_streaming(const T* pointer, SIAM_EMULATOR_SITE) {
  static_assert(AccessOf<V, T>::allowed);
  return emulator::load_global<V>(pointer, SIAM_EMULATOR_HERE);
}
template <class V, class T>
void store(V value, T* pointer, SIAM_EMULATOR_SITE) {
  static_assert(AccessOf<V, T>::allowed);
  emulator::store_global(value, pointer, SIAM_EMULATOR_HERE);
}
template <class V, class T>
void store_streaming(V value, T* pointer, SIAM_EMULATOR_SITE) {
  static_assert(AccessOf<V, T>::allowed);
  emulator::store_global(value, pointer, SIAM_EMULATOR_HERE);
}

template <class V, class T, class I>
V load_shared(const Shared<T>& array, I index, SIAM_EMULATOR_SITE) {
  static_assert(AccessOf<V, T>::allowed);
  return emulator::load_shared_as<V>(array + index, SIAM_EMULATOR_HERE);
}
template <class V, class T, class I>
void store_shared(V value, const Shared<T>& array, I index, SIAM_EMULATOR_SITE) {
  static_assert(AccessOf<V, T>::allowed);
  emulator::store_shared_as(value, array + index, SIAM_EMULATOR_HERE);
}
template <class U, class T>
Shared<U> shared_cast(const Shared<T>& array) {
  return array.template cast<U>();
}

// Findings are thrown from the launch itself.
inline const char* check_launch() { return nullptr; }

// Few, so that a persistent grid has to loop.
inline int multiprocessor_count(int /*device*/) { return 2; }

// The architecture that is emulated, where that changes which kernels are chosen.
template <class Kernel>
int usable_capability(Kernel*, int /*device*/) {
  const char* text = std::getenv("SIAM_EMULATOR_CAPABILITY");
  return text == nullptr || *text == '\0' ? 80 : std::atoi(text);
}

}  // namespace siamcuda::cuda

#else

#define SIAM_KERNEL(max_threads, min_blocks) __global__ __launch_bounds__(max_threads, min_blocks)
#define SIAM_DEVICE __device__ __forceinline__
#ifndef SIAM_HOST_DEVICE
#define SIAM_HOST_DEVICE __host__ __device__ __forceinline__
#endif
#define SIAM_UNROLL _Pragma("unroll")
#define SIAM_NO_UNROLL _Pragma("unroll 1")

#define SIAM_SHARED(T, name, ...) __shared__ __align__(16) T name[__VA_ARGS__]
// One name and type for all kernels of a translation unit: two extern declarations of different
// type would clash.
#define SIAM_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char siam_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(siam_dynamic_shared)

#define SIAM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::siamcuda::cuda::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace siamcuda::cuda {

using Stream = cudaStream_t;
inline Stream native_stream(void* stream) { return static_cast<cudaStream_t>(stream); }
using Dim3 = dim3;

template <class T>
using Shared = T*;

// Vector accesses go through CUDA's own vector types: a struct of four floats may be split into
// four loads, uint4 is not.
template <std::size_t bytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
template <class V>
using Word = typename WordOf<sizeof(V)>::type;

template <class V, class W>
SIAM_DEVICE V value_of(W word) {
  V value;
  memcpy(&value, &word, sizeof(V));
  return value;
}
template <class V>
SIAM_DEVICE Word<V> word_of(const V& value) {
  Word<V> word;
  memcpy(&word, &value, sizeof(V));
  return word;
}

template <class V, class T>
SIAM_DEVICE V load(const T* pointer) {
  static_assert(AccessOf<V, T>::allowed);
  return value_of<V>(*reinterpret_cast<const Word<V>*>(pointer));
}
template <class V, class T>
SIAM_DEVICE V load_streaming(const T* pointer) {
  static_assert(AccessOf<V, T>::allowed);
  return value_of<V>(__ldcs(reinterpret_cast<const Word<V>*>(pointer)));
}
template <class V, class T>
SIAM_DEVICE void store(V value, T* pointer) {
  static_assert(AccessOf<V, T>::allowed);
  // Not an assignment: the compiler takes a uint4 apart, and does not always find it again.
  if constexpr (sizeof(V) > 4) {
    __stwb(reinterpret_cast<Word<V>*>(pointer), word_of(value));
  } else {
    *reinterpret_cast<Word<V>*>(pointer) = word_of(value);
  }
}
template <class V, class T>
SIAM_DEVICE void store_streaming(V value, T* pointer) {
  static_assert(AccessOf<V, T>::allowed);
  __stcs(reinterpret_cast<Word<V>*>(pointer), word_of(value));
}

template <class V, class T, class I>
SIAM_DEVICE V load_shared(const T* array, I index) {
  static_assert(AccessOf<V, T>::allowed);
  return value_of<V>(*reinterpret_cast<const Word<V>*>(array + index));
}
template <class V, class T, class I>
SIAM_DEVICE void store_shared(V value, T* array, I index) {
  static_assert(AccessOf<V, T>::allowed);
  *reinterpret_cast<Word<V>*>(array + index) = word_of(value);
}
template <class U, class T>
SIAM_DEVICE U* shared_cast(T* array) {
  return reinterpret_cast<U*>(array);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Dim3 grid, Dim3 block, std::size_t shared_bytes,
            Stream stream, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  // Above 48 KB a kernel has to ask; a refusal is reported by the launch that follows.
  if (shared_bytes > 48 * 1024) {
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
}

// The message of a failed launch, or null.
inline const char* check_launch() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline int multiprocessor_count(int device) {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}

// 10 · major + minor of the current device; but where its code was compiled from PTX for sm_75,
// which leaves out what came with sm_80, that of the PTX.
template <class Kernel>
int usable_capability(Kernel* kernel, int device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const int capability = 10 * major + minor;
  cudaFuncAttributes attributes{};
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  const int compiled = error == cudaSuccess ? attributes.ptxVersion : capability;
  return compiled < 80 && compiled < capability ? compiled : capability;
}

}  // namespace siamcuda::cuda

#endif
