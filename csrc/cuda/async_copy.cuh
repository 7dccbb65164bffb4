// cp.async (sm_80): copies from global to shared memory that pass by the registers and land while
// the thread goes on. On sm_75 a plain load and store, done at once: the same program is right, and
// only slower. Under the emulator a copy lands at the wait for its group, and not before.
//
//   cp_async_16(stage + i, x + j, valid_bytes);   16 bytes, or 16 zeros where valid_bytes is 0
//   cp_async_commit();                            what was issued since the last one is a group
//   cp_async_wait<N>();                           all groups but the last N have landed for *this*
//                                                 thread; others see them behind a __syncthreads
//
// valid_bytes is 16 or 0: with fewer hardware may read all 16 still, past the end of an array. Both
// addresses are multiples of 16 bytes, also where nothing is read.
#pragma once

#include "cuda/platform.cuh"

namespace siamcuda::cuda {

#if defined(SIAM_EMULATED)

template <class T, class U>
void cp_async_16(const Shared<T>& to, const U* from, int valid_bytes, SIAM_EMULATOR_SITE) {
  emulator::copy_async(to, from, valid_bytes, SIAM_EMULATOR_HERE);
}
inline void cp_async_commit() { emulator::commit_async(); }
template <int kInFlight>
void cp_async_wait(SIAM_EMULATOR_SITE) {
  emulator::wait_async(kInFlight, SIAM_EMULATOR_HERE);
}

#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

template <class T, class U>
SIAM_DEVICE void cp_async_16(T* to, const U* from, int valid_bytes) {
  // .cg: past L1, since a tile is read from global memory once a block.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(valid_bytes)
               : "memory");
}
SIAM_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kInFlight>
SIAM_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
}

#else

template <class T, class U>
SIAM_DEVICE void cp_async_16(T* to, const U* from, int valid_bytes) {
  uint4 word = make_uint4(0, 0, 0, 0);
  if (valid_bytes != 0) word = *reinterpret_cast<const uint4*>(from);
  *reinterpret_cast<uint4*>(to) = word;
}
SIAM_DEVICE void cp_async_commit() {}
template <int kInFlight>
SIAM_DEVICE void cp_async_wait() {}

#endif

}  // namespace siamcuda::cuda
