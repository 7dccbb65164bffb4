// Loads and stores of global memory: bounds, alignment, permission, initialisation, races, sectors.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "machine.h"

namespace siamcuda::emulator {

inline void check_global(const void* pointer, std::size_t size, std::size_t alignment, Touch touch,
                         bool reads, Site site) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const bool writes = touch != Touch::load;
  const auto what = [&] {
    return std::string(touch == Touch::load    ? "load"
                       : touch == Touch::store ? "store"
                                               : "atomic") +
           " of " + std::to_string(size) + " bytes, " + machine.memory->describe(address);
  };
  if (!machine.running())
    machine.fail("access outside a launch", site, std::to_string(size) + " bytes");
  if (address % alignment != 0)
    machine.fail("misaligned access", site,
                 what() + ", not aligned to " + std::to_string(alignment) + " bytes");
  const auto* known = machine.memory->find(address, size, writes);
  if (known == nullptr)
    machine.fail(writes ? "out-of-bounds write" : "out-of-bounds read", site, what());
  const Range& range = *known->range;
  if (writes && range.access == Access::read)
    machine.fail("write to read-only buffer", site, what());
  if (reads && range.access == Access::write &&
      !range.written.contains(address - range.begin, size))
    machine.fail("uninitialised global read", site, what());
  if (known->shadowed) {
    const Shadow::Conflict* conflict =
        machine.memory->record(address, size, touch, machine.actor(), site);
    if (conflict != nullptr)
      machine.fail("global race", site,
                   what() + ": no order against the " +
                       (conflict->earlier_wrote ? "write" : "read") + " at " +
                       conflict->site.text() + " by thread " + std::to_string(conflict->thread) +
                       " of " +
                       (conflict->other_block ? machine.describe_block(conflict->block)
                                              : std::string("the same block")));
  }
  if (writes) machine.memory->mark_written(*known, address, size);
  if (machine.statistics.enabled)
    machine.statistics.record(touch == Touch::load    ? Kind::global_load
                              : touch == Touch::store ? Kind::global_store
                                                      : Kind::global_atomic,
                              site, size, machine.current->id, address);
}

template <class V, class T>
V load_global(const T* pointer, Site site) {
  check_global(pointer, sizeof(V), sizeof(V), Touch::load, true, site);
  V value;
  std::memcpy(static_cast<void*>(&value), pointer, sizeof(V));
  return value;
}

template <class V, class T>
void store_global(const V& value, T* pointer, Site site) {
  check_global(pointer, sizeof(V), sizeof(V), Touch::store, false, site);
  std::memcpy(static_cast<void*>(pointer), &value, sizeof(V));
}

}  // namespace siamcuda::emulator

namespace siamcuda {

template <class T>
T __ldg(const T* pointer, SIAM_EMULATOR_SITE) {
  return emulator::load_global<T>(pointer, SIAM_EMULATOR_HERE);
}

}  // namespace siamcuda
