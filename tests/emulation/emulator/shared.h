// Shared memory: exact-size storage per block, filled with 0xFF, behind a pointer that checks.
//
// SharedPointer<T> stands for T*, and *p and p[i] give a SharedReference<T> that stands for T&.
// Both are only good for the expression they appear in, as kernel text needs: `auto v = tile[i]`
// copies under nvcc, so here it does not compile (the reference can be used only as an rvalue)
// instead of quietly meaning something else. Write `float v = tile[i]`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "machine.h"

namespace siamcuda::emulator {

inline constexpr std::size_t kMaxStaticShared = 48 * 1024;
inline constexpr std::size_t kMaxShared = 227 * 1024;

// Names the copy that nobody has waited for.
[[noreturn]] inline void fail_for_pending_copy(const Segment& segment, std::size_t begin,
                                               std::size_t size, Site site,
                                               const std::string& what) {
  for (const Thread& thread : machine.threads)
    for (const AsyncCopy& copy : thread.copies)
      if (copy.segment == &segment && copy.offset < begin + size && begin < copy.offset + 16)
        machine.fail("asynchronous copy in flight", site,
                     what + ": the copy at " + copy.site.text() + " by " +
                         machine.describe(thread) + " has not been waited for");
  machine.fail("asynchronous copy in flight", site, what);
}

inline void check_shared(Segment& segment, std::ptrdiff_t offset, std::size_t size,
                         std::size_t alignment, Touch touch, bool reads, Site site) {
  const bool writes = touch != Touch::load;
  const auto what = [&] {
    return std::string(touch == Touch::load    ? "load"
                       : touch == Touch::store ? "store"
                                               : "atomic") +
           " of " + std::to_string(size) + " bytes at byte " + std::to_string(offset) + " of '" +
           segment.name + "' (" + std::to_string(segment.bytes) + " bytes)";
  };
  if (offset < 0 || static_cast<std::size_t>(offset) > segment.bytes ||
      size > segment.bytes - static_cast<std::size_t>(offset))
    machine.fail(writes ? "out-of-bounds shared write" : "out-of-bounds shared read", site, what());
  const auto begin = static_cast<std::size_t>(offset);
  if (begin % alignment != 0)
    machine.fail("misaligned access", site,
                 what() + ", not aligned to " + std::to_string(alignment) + " bytes");
  if (segment.pending_bytes > 0 && std::memchr(segment.pending.data() + begin, 1, size) != nullptr)
    fail_for_pending_copy(segment, begin, size, site, what());
  if (reads) {
    if (std::memchr(segment.written.data() + begin, 0, size) != nullptr)
      machine.fail("uninitialised shared read", site, what());
  }
  if (!segment.shadow.access(begin, size, touch, machine.actor(), site)) {
    const Shadow::Conflict& conflict = segment.shadow.conflict();
    machine.fail("shared race", site,
                 what() + ": no barrier since the " + (conflict.earlier_wrote ? "write" : "read") +
                     " at " + conflict.site.text() + " by " +
                     machine.describe_thread(conflict.thread));
  }
  if (writes) std::memset(segment.written.data() + begin, 1, size);
  if (machine.statistics.enabled)
    machine.statistics.record(touch == Touch::load    ? Kind::shared_load
                              : touch == Touch::store ? Kind::shared_store
                                                      : Kind::shared_atomic,
                              site, size, machine.current->id, begin);
}

// Where an index was written: operator[] can take no default arguments, its parameter's
// constructor can.
struct Index {
  std::ptrdiff_t value;
  Site site;
  template <class I, class = std::enable_if_t<std::is_integral_v<I> || std::is_enum_v<I>>>
  Index(I index, SIAM_EMULATOR_SITE)
      : value(static_cast<std::ptrdiff_t>(index)), site(SIAM_EMULATOR_HERE) {}
};

template <class T>
class SharedPointer;

template <class T>
class SharedReference {
 public:
  using Value = std::remove_const_t<T>;

  SharedReference(Segment* segment, std::ptrdiff_t offset, Site site)
      : segment_(segment), offset_(offset), site_(site) {}
  SharedReference(const SharedReference&) = delete;

  operator Value() && { return get(); }
  SharedPointer<T> operator&() && { return {segment_, offset_, site_}; }

  const SharedReference& operator=(const Value& value) && { return set(value); }
  const SharedReference& operator=(SharedReference&& other) && { return set(other.get()); }
#define SIAM_EMULATOR_COMPOUND(op)                         \
  template <class U>                                       \
  const SharedReference& operator op## = (U && value) && { \
    return set(get() op std::forward<U>(value));           \
  }
  SIAM_EMULATOR_COMPOUND(+)
  SIAM_EMULATOR_COMPOUND(-)
  SIAM_EMULATOR_COMPOUND(*)
  SIAM_EMULATOR_COMPOUND(/)
  SIAM_EMULATOR_COMPOUND(|)
  SIAM_EMULATOR_COMPOUND(&)
  SIAM_EMULATOR_COMPOUND(^)
#undef SIAM_EMULATOR_COMPOUND

 private:
  Value get() const {
    check_shared(*segment_, offset_, sizeof(T), alignof(T), Touch::load, true, site_);
    Value value;
    std::memcpy(static_cast<void*>(&value), segment_->data() + offset_, sizeof(T));
    return value;
  }
  template <class U>
  const SharedReference& set(const U& from) const {
    static_assert(!std::is_const_v<T>, "this shared array is read-only here");
    const Value value = static_cast<Value>(from);
    check_shared(*segment_, offset_, sizeof(T), alignof(T), Touch::store, false, site_);
    std::memcpy(segment_->data() + offset_, &value, sizeof(T));
    return *this;
  }

  Segment* segment_;
  std::ptrdiff_t offset_;
  Site site_;
};

template <class T>
class SharedPointer {
 public:
  static_assert(std::is_trivially_copyable_v<T>, "shared memory holds plain values");

  SharedPointer() = default;
  SharedPointer(Segment* segment, std::ptrdiff_t offset, Site site)
      : segment_(segment), offset_(offset), site_(site) {}
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  SharedPointer(const SharedPointer<U>& other)
      : segment_(other.segment()), offset_(other.offset()), site_(other.site()) {}

  SharedReference<T> operator[](Index index) const {
    return {segment_, offset_ + index.value * step(), index.site};
  }
  SharedReference<T> operator*() const { return {segment_, offset_, site_}; }

  SharedPointer operator+(Index index) const {
    return {segment_, offset_ + index.value * step(), index.site};
  }
  SharedPointer operator-(Index index) const {
    return {segment_, offset_ - index.value * step(), index.site};
  }
  SharedPointer& operator+=(Index index) { return *this = *this + index; }
  SharedPointer& operator-=(Index index) { return *this = *this - index; }
  std::ptrdiff_t operator-(const SharedPointer& other) const {
    return (offset_ - other.offset_) / step();
  }
  bool operator==(const SharedPointer& other) const {
    return segment_ == other.segment_ && offset_ == other.offset_;
  }
  bool operator!=(const SharedPointer& other) const { return !(*this == other); }

  template <class U>
  SharedPointer<U> cast() const {
    return {segment_, offset_, site_};
  }
  Segment* segment() const { return segment_; }
  std::ptrdiff_t offset() const { return offset_; }
  Site site() const { return site_; }

 private:
  static constexpr std::ptrdiff_t step() { return static_cast<std::ptrdiff_t>(sizeof(T)); }

  Segment* segment_ = nullptr;
  std::ptrdiff_t offset_ = 0;
  Site site_;
};

// Finds the array that a declaration stands for in the running block: `key` is one address per
// declaration and template instance, as __shared__ variables are.
inline Segment* shared_segment(const void* key, const char* name, std::size_t bytes, bool dynamic,
                               Site site) {
  Segment* found = nullptr;
  for (const auto& segment : machine.segments)
    if (segment->key == key) found = segment.get();
  if (found == nullptr) {
    if (!dynamic) {
      machine.static_shared_bytes += bytes;
      if (machine.static_shared_bytes > kMaxStaticShared)
        machine.fail("launch limit", site,
                     std::to_string(machine.static_shared_bytes) +
                         " bytes of static shared memory, the limit is 48 KB");
    }
    if (machine.static_shared_bytes + machine.dynamic_shared_bytes > kMaxShared)
      machine.fail("launch limit", site, "more than 227 KB of shared memory");
    machine.segments.push_back(std::unique_ptr<Segment>(
        new Segment{key,
                    name,
                    bytes,
                    std::unique_ptr<double[]>(new double[bytes / sizeof(double) + 1]),
                    std::vector<std::uint8_t>(bytes),
                    Shadow(bytes, Shadow::Lifetime::block),
                    0,
                    {},
                    0}));
    found = machine.segments.back().get();
  }
  if (found->block != machine.block) {
    found->block = machine.block;
    // All bits set is NaN in every floating type, and -1 or a huge index in the integer ones.
    std::memset(found->data(), 0xFF, found->bytes);
    if (!found->written.empty()) std::memset(found->written.data(), 0, found->bytes);
  }
  return found;
}

template <class T>
SharedPointer<T> static_shared(const void* key, const char* name, std::size_t count, Site site) {
  return {shared_segment(key, name, count * sizeof(T), false, site), 0, site};
}

// The dynamic array is one for the block, under whatever names and types it is declared.
template <class T>
SharedPointer<T> dynamic_shared(const char* name, Site site) {
  return {shared_segment(&machine, name, machine.dynamic_shared_bytes, true, site), 0, site};
}

template <class V, class T>
V load_shared_as(const SharedPointer<T>& pointer, Site site) {
  check_shared(*pointer.segment(), pointer.offset(), sizeof(V), sizeof(V), Touch::load, true, site);
  V value;
  std::memcpy(static_cast<void*>(&value), pointer.segment()->data() + pointer.offset(), sizeof(V));
  return value;
}

template <class V, class T>
void store_shared_as(const V& value, const SharedPointer<T>& pointer, Site site) {
  check_shared(*pointer.segment(), pointer.offset(), sizeof(V), sizeof(V), Touch::store, false,
               site);
  std::memcpy(pointer.segment()->data() + pointer.offset(), &value, sizeof(V));
}

}  // namespace siamcuda::emulator
