// The global memory that kernels may touch: ranges registered by the test or the launcher.
//
//   Buffer in(x, bytes, Access::read, "x");     writing it is an error
//   Buffer out(y, bytes, Access::write, "y");   reading a byte before it was written is an error
//   Buffer tmp(z, bytes, Access::read_write);   holds values already, may be changed
//
// Ranges may overlap (one tensor passed twice); an access is allowed if one range allows all of it.
// A Buffer remembers what was written for as long as it lives, over several launches.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "shadow.h"

namespace siamcuda::emulator {

enum class Access { read, write, read_write };

// Which bytes have been written; in pages, since a buffer may be registered larger than memory.
class ByteSet {
 public:
  explicit ByteSet(std::size_t bytes) : bytes_(bytes), pages_((bytes + kPage - 1) / kPage) {}

  void insert(std::size_t offset, std::size_t size) {
    for (std::size_t i = offset; i < offset + size; ++i) {
      auto& page = pages_[i / kPage];
      if (!page) page = std::make_unique<std::bitset<kPage>>();
      page->set(i % kPage);
    }
  }
  bool contains(std::size_t offset, std::size_t size) const {
    for (std::size_t i = offset; i < offset + size; ++i) {
      const auto& page = pages_[i / kPage];
      if (!page || !page->test(i % kPage)) return false;
    }
    return true;
  }
  std::size_t missing() const {
    std::size_t present = 0;
    for (const auto& page : pages_)
      if (page) present += page->count();
    return bytes_ - present;
  }

 private:
  static constexpr std::size_t kPage = 4096;
  std::size_t bytes_;
  std::vector<std::unique_ptr<std::bitset<kPage>>> pages_;
};

struct Range {
  std::uintptr_t begin;
  std::uintptr_t end;
  Access access;
  std::string name;
  ByteSet written;

  bool holds(std::uintptr_t address, std::size_t size) const {
    return address >= begin && address < end && size <= end - address;
  }
};

// Guards the list of ranges and, for its whole length, a launch.
inline std::recursive_mutex& machine_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

inline std::vector<Range*>& registered_ranges() {
  static std::vector<Range*> ranges;
  return ranges;
}

class Buffer {
 public:
  Buffer(const void* pointer, std::size_t bytes, Access access, std::string name = "buffer") {
    const auto begin = reinterpret_cast<std::uintptr_t>(pointer);
    range_ = std::make_unique<Range>(Range{begin, begin + bytes, access, std::move(name),
                                           ByteSet(access == Access::write ? bytes : 0)});
    std::lock_guard<std::recursive_mutex> lock(machine_mutex());
    registered_ranges().push_back(range_.get());
  }
  ~Buffer() {
    if (!range_) return;
    std::lock_guard<std::recursive_mutex> lock(machine_mutex());
    auto& ranges = registered_ranges();
    ranges.erase(std::remove(ranges.begin(), ranges.end(), range_.get()), ranges.end());
  }
  Buffer(Buffer&& other) noexcept = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;

  // How much of an output no launch has written yet; 0 for the other kinds of access.
  std::size_t unwritten_bytes() const {
    return range_->access == Access::write ? range_->written.missing() : 0;
  }

 private:
  std::unique_ptr<Range> range_;
};

// The ranges as one launch sees them, with shadows over everything that it could write.
class LaunchMemory {
 public:
  struct Region {
    std::uintptr_t begin;
    std::uintptr_t end;
    Shadow shadow;
  };

  LaunchMemory() {
    for (Range* range : registered_ranges())
      if (range->begin != range->end) ranges_.push_back({range, false, false});
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> writable;
    for (const Known& known : ranges_)
      if (known.range->access != Access::read)
        writable.emplace_back(known.range->begin, known.range->end);
    std::sort(writable.begin(), writable.end());
    for (std::size_t i = 0; i < writable.size();) {
      std::uintptr_t end = writable[i].second;
      std::size_t next = i + 1;
      for (; next < writable.size() && writable[next].first < end; ++next)
        end = std::max(end, writable[next].second);
      // Granules of the shadow are aligned as the addresses are.
      const std::uintptr_t begin = writable[i].first / 16 * 16;
      regions_.push_back(std::make_unique<Region>(
          Region{begin, end, Shadow(end - begin + 16, Shadow::Lifetime::launch)}));
      i = next;
    }
    for (Known& known : ranges_) {
      for (const auto& region : regions_)
        known.shadowed |= known.range->begin < region->end && region->begin < known.range->end;
      for (const Known& other : ranges_)
        known.overlaps |= &other != &known && known.range->begin < other.range->end &&
                          other.range->begin < known.range->end;
    }
  }

  struct Known {
    Range* range;
    bool shadowed;
    bool overlaps;
  };

  // The range that holds the bytes and allows the access; else one that holds them; else null.
  const Known* find(std::uintptr_t address, std::size_t size, bool write) {
    if (last_ < ranges_.size() && !ranges_[last_].overlaps &&
        ranges_[last_].range->holds(address, size))
      return &ranges_[last_];
    const Known* forbidden = nullptr;
    for (std::size_t i = 0; i < ranges_.size(); ++i) {
      const Range& range = *ranges_[i].range;
      if (!range.holds(address, size)) continue;
      last_ = i;
      const bool allowed = write ? range.access != Access::read
                                 : range.access != Access::write ||
                                       range.written.contains(address - range.begin, size);
      if (allowed) return &ranges_[i];
      forbidden = &ranges_[i];
    }
    return forbidden;
  }

  void mark_written(const Known& known, std::uintptr_t address, std::size_t size) {
    if (!known.overlaps) {
      if (known.range->access == Access::write)
        known.range->written.insert(address - known.range->begin, size);
      return;
    }
    for (const Known& each : ranges_)
      if (each.range->access == Access::write && each.range->holds(address, size))
        each.range->written.insert(address - each.range->begin, size);
  }

  // Null if the access is ordered after all others, else what it races with.
  const Shadow::Conflict* record(std::uintptr_t address, std::size_t size, Touch touch,
                                 const Actor& actor, Site site) {
    for (const auto& region : regions_) {
      const std::uintptr_t begin = std::max(address, region->begin);
      const std::uintptr_t end = std::min(address + size, region->end);
      if (begin >= end) continue;
      if (!region->shadow.access(begin - region->begin, end - begin, touch, actor, site))
        return &region->shadow.conflict();
    }
    return nullptr;
  }

  // "4 bytes past the end of 'x' (read, 1024 bytes)"
  std::string describe(std::uintptr_t address) const {
    const Range* nearest = nullptr;
    std::uintptr_t best = ~std::uintptr_t{0};
    for (const Known& known : ranges_) {
      const Range& range = *known.range;
      const std::uintptr_t distance = address < range.begin  ? range.begin - address
                                      : address >= range.end ? address - range.end
                                                             : 0;
      if (nearest == nullptr || distance < best) {
        nearest = &range;
        best = distance;
      }
    }
    if (nearest == nullptr) return "no buffer is registered";
    const std::string whole =
        "'" + nearest->name + "' (" + std::to_string(nearest->end - nearest->begin) + " bytes)";
    if (address < nearest->begin)
      return std::to_string(best) + " bytes before the start of " + whole;
    if (address >= nearest->end) return std::to_string(best) + " bytes past the end of " + whole;
    return "at byte " + std::to_string(address - nearest->begin) + " of " + whole;
  }

 private:
  std::vector<Known> ranges_;
  std::vector<std::unique_ptr<Region>> regions_;
  std::size_t last_ = 0;
};

}  // namespace siamcuda::emulator
