// cp.async: copies of 16 bytes from global to shared memory that land when they are waited for.
//
// From its issue to the wait that covers its group a copy's bytes are 0xFF, and nobody may read or
// write them: hardware may land a copy at any moment in between, so whatever touches them is a bug
// in some schedule of the hardware. A wait makes them visible to the thread that waits, as a store
// at that moment would; other threads need a barrier behind it, which shadow.h asks for.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "global.h"
#include "shared.h"

namespace siamcuda::emulator {

inline constexpr std::size_t kAsyncCopyBytes = 16;

// Copies 16 bytes, or writes 16 zeros where `valid_bytes` is 0.
template <class T>
void copy_async(const SharedPointer<T>& to, const void* from, int valid_bytes, Site site) {
  if (valid_bytes != 0 && valid_bytes != static_cast<int>(kAsyncCopyBytes))
    machine.fail("asynchronous copy size", site,
                 std::to_string(valid_bytes) +
                     " valid bytes of a copy of 16, of which hardware may read all");
  if (reinterpret_cast<std::uintptr_t>(from) % kAsyncCopyBytes != 0)
    machine.fail("misaligned access", site,
                 "the source of an asynchronous copy is not aligned to 16 bytes");
  const auto valid = static_cast<std::size_t>(valid_bytes);
  if (valid > 0) check_global(from, valid, kAsyncCopyBytes, Touch::load, true, site);
  Segment& segment = *to.segment();
  check_shared(segment, to.offset(), kAsyncCopyBytes, kAsyncCopyBytes, Touch::store, false, site);
  const auto begin = static_cast<std::size_t>(to.offset());
  if (segment.pending.empty()) segment.pending.resize(segment.bytes);
  std::memset(segment.pending.data() + begin, 1, kAsyncCopyBytes);
  segment.pending_bytes += kAsyncCopyBytes;
  std::memset(segment.data() + begin, 0xFF, kAsyncCopyBytes);
  Thread& me = *machine.current;
  me.copies.push_back({&segment, begin, from, valid, me.committed, site});
}

inline void commit_async() { ++machine.current->committed; }

inline void land(const AsyncCopy& copy, Site site) {
  Segment& segment = *copy.segment;
  std::memset(segment.pending.data() + copy.offset, 0, kAsyncCopyBytes);
  segment.pending_bytes -= kAsyncCopyBytes;
  if (!segment.shadow.access(copy.offset, kAsyncCopyBytes, Touch::store, machine.actor(), site))
    machine.fail("shared race", site,
                 "the copy at " + copy.site.text() + " lands where " +
                     machine.describe_thread(segment.shadow.conflict().thread) + " is busy, at " +
                     segment.shadow.conflict().site.text());
  char* const data = segment.data() + copy.offset;
  std::memcpy(data, copy.source, copy.valid_bytes);
  std::memset(data + copy.valid_bytes, 0, kAsyncCopyBytes - copy.valid_bytes);
}

// Lands this thread's copies of all groups but the last `still_in_flight` it committed. Copies that
// were never committed belong to no group and stay in flight.
inline void wait_async(int still_in_flight, Site site) {
  Thread& me = *machine.current;
  const std::uint64_t pending = static_cast<std::uint64_t>(still_in_flight);
  const std::uint64_t landed = me.committed > pending ? me.committed - pending : 0;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < me.copies.size(); ++i) {
    if (me.copies[i].group < landed) {
      land(me.copies[i], site);
    } else {
      me.copies[kept++] = me.copies[i];
    }
  }
  me.copies.resize(kept);
}

}  // namespace siamcuda::emulator
