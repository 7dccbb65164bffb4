// CUDA's built-in vector types with their alignments, and the four index variables.
//
// Everything that stands for a native CUDA name lives in namespace siamcuda, not in the global
// one: kernel text is inside it and finds these names unqualified, while a translation unit that
// happens to include the real CUDA headers keeps those.
#pragma once

namespace siamcuda {

#define SIAM_EMULATOR_VECTORS(T, name, size, half)                   \
  struct alignas(size) name##2 { T x, y; };                          \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(half) name##4 { T x, y, z, w; };                    \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

// The last two columns are the alignments of the pair and of the quadruple; CUDA caps both at 16.
SIAM_EMULATOR_VECTORS(signed char, char, 2, 4)
SIAM_EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
SIAM_EMULATOR_VECTORS(short, short, 4, 8)
SIAM_EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
SIAM_EMULATOR_VECTORS(int, int, 8, 16)
SIAM_EMULATOR_VECTORS(unsigned int, uint, 8, 16)
SIAM_EMULATOR_VECTORS(float, float, 8, 16)
SIAM_EMULATOR_VECTORS(double, double, 16, 16)
SIAM_EMULATOR_VECTORS(long long, longlong, 16, 16)
SIAM_EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
#undef SIAM_EMULATOR_VECTORS

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
      : x(x_), y(y_), z(z_) {}
};

// Plain globals, since they are read far more often than a fiber is switched in: launches are
// serialised by the machine's mutex, and the scheduler writes them at each switch.
inline uint3 threadIdx{0, 0, 0};
inline uint3 blockIdx{0, 0, 0};
inline dim3 blockDim;
inline dim3 gridDim;
inline constexpr int warpSize = 32;

}  // namespace siamcuda
