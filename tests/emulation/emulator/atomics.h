// Atomics on global and shared memory. Only one thread runs at a time, so the arithmetic is plain;
// what matters is that they count as atomic for Note [Races].
#pragma once

#include <cstring>
#include <type_traits>

#include "global.h"
#include "shared.h"

namespace siamcuda::emulator {

template <class T, class Change>
T atomic(T* pointer, bool reads, Site site, Change change) {
  check_global(pointer, sizeof(T), sizeof(T), Touch::atomic, reads, site);
  T old;
  std::memcpy(&old, pointer, sizeof(T));
  const T changed = change(old);
  std::memcpy(pointer, &changed, sizeof(T));
  return old;
}

template <class T, class Change>
T atomic(SharedPointer<T> pointer, bool reads, Site site, Change change) {
  check_shared(*pointer.segment(), pointer.offset(), sizeof(T), sizeof(T), Touch::atomic, reads,
               site);
  T old;
  char* data = pointer.segment()->data() + pointer.offset();
  std::memcpy(&old, data, sizeof(T));
  const T changed = change(old);
  std::memcpy(data, &changed, sizeof(T));
  return old;
}

template <class T>
inline constexpr bool is_atomic_integer =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;
template <class T>
inline constexpr bool is_atomic_number =
    is_atomic_integer<T> || std::is_same_v<T, float> || std::is_same_v<T, double>;

// Keeps the operand out of deduction, so that atomicAdd(&counter, 1) works on any counter.
template <class T>
struct Same {
  using type = T;
};

}  // namespace siamcuda::emulator

namespace siamcuda {

// `supported` holds the types CUDA has an overload for; `reads` is false where an output that was
// never written may be the target.
#define SIAM_EMULATOR_ATOMIC(name, supported, reads, expression)                      \
  template <class T>                                                                  \
  T name(T* pointer, typename emulator::Same<T>::type value, SIAM_EMULATOR_SITE) {    \
    static_assert(emulator::supported<T>, #name " has no overload for this type");    \
    return emulator::atomic(pointer, reads, SIAM_EMULATOR_HERE,                       \
                            [&]([[maybe_unused]] T old) -> T { return expression; }); \
  }                                                                                   \
  template <class T>                                                                  \
  T name(emulator::SharedPointer<T> pointer, typename emulator::Same<T>::type value,  \
         SIAM_EMULATOR_SITE) {                                                        \
    static_assert(emulator::supported<T>, #name " has no overload for this type");    \
    return emulator::atomic(pointer, reads, SIAM_EMULATOR_HERE,                       \
                            [&]([[maybe_unused]] T old) -> T { return expression; }); \
  }

SIAM_EMULATOR_ATOMIC(atomicAdd, is_atomic_number, true, old + value)
SIAM_EMULATOR_ATOMIC(atomicMin, is_atomic_integer, true, value < old ? value : old)
SIAM_EMULATOR_ATOMIC(atomicMax, is_atomic_integer, true, value > old ? value : old)
SIAM_EMULATOR_ATOMIC(atomicOr, is_atomic_integer, true, old | value)
SIAM_EMULATOR_ATOMIC(atomicAnd, is_atomic_integer, true, old& value)
SIAM_EMULATOR_ATOMIC(atomicExch, is_atomic_number, false, value)
#undef SIAM_EMULATOR_ATOMIC

template <class T>
T atomicCAS(T* pointer, typename emulator::Same<T>::type expected,
            typename emulator::Same<T>::type value, SIAM_EMULATOR_SITE) {
  static_assert(emulator::is_atomic_integer<T>, "atomicCAS has no overload for this type");
  return emulator::atomic(pointer, true, SIAM_EMULATOR_HERE,
                          [&](T old) -> T { return old == expected ? value : old; });
}
template <class T>
T atomicCAS(emulator::SharedPointer<T> pointer, typename emulator::Same<T>::type expected,
            typename emulator::Same<T>::type value, SIAM_EMULATOR_SITE) {
  static_assert(emulator::is_atomic_integer<T>, "atomicCAS has no overload for this type");
  return emulator::atomic(pointer, true, SIAM_EMULATOR_HERE,
                          [&](T old) -> T { return old == expected ? value : old; });
}

}  // namespace siamcuda
