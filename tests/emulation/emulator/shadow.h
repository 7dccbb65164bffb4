// Note [Races]: who touched which byte, and whether a barrier lies between.
//
// Each granule of memory remembers its last write and the reads since. An access is ordered after a
// remembered one when the same thread made it, when __syncthreads lies between (the block's epoch
// has grown), or when __syncwarp does (see Order). Blocks of a launch are never ordered. Whatever
// is not ordered is a race, and is found in every schedule, also when the values come out right.
//
// Shuffles and votes do not order memory: the CUDA programming guide gives that to __syncwarp only.
//
// Readers are kept as a set only within one warp. That loses nothing: as soon as two warps (or two
// blocks) have read since the last barrier, a write by anyone races with at least one of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "error.h"

namespace siamcuda::emulator {

// The order that __syncwarp has established within one warp. `generation` counts its completed
// syncs; an access made at generation g by a lane is visible to this one if a later sync joined
// them, directly or by way of other lanes.
struct WarpOrder {
  std::uint32_t generation = 0;
  std::uint32_t all_joined = 0;       // the last sync that named every lane
  std::uint32_t joined[32][32] = {};  // joined[me][lane]

  bool visible(unsigned me, unsigned lane, std::uint32_t generation_of_access) const {
    const std::uint32_t last = joined[me][lane] > all_joined ? joined[me][lane] : all_joined;
    return last > generation_of_access;
  }

  void sync(std::uint32_t mask) {
    ++generation;
    if (mask == 0xFFFFFFFFu) {
      all_joined = generation;
      return;
    }
    std::uint32_t latest[32] = {};
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      for (unsigned other = 0; other < 32; ++other)
        if (joined[lane][other] > latest[other]) latest[other] = joined[lane][other];
    }
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1u) latest[lane] = generation;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      for (unsigned other = 0; other < 32; ++other) joined[lane][other] = latest[other];
    }
  }
};

// Who makes an access, and when.
struct Actor {
  std::uint32_t block;  // ordinal within the launch, from 1
  std::uint32_t epoch;  // barriers passed by the block
  std::uint16_t thread;
  std::uint16_t warp;
  std::uint16_t lane;
  const WarpOrder* order;
};

enum class Touch : std::uint8_t { load, store, atomic };

class Shadow {
 public:
  // Shared memory is new for each block; global memory is one for the whole launch.
  enum class Lifetime : std::uint8_t { block, launch };

  struct Conflict {
    bool earlier_wrote = false;
    bool other_block = false;
    std::uint32_t block = 0;
    std::uint16_t thread = 0;
    Site site;
  };

  Shadow(std::size_t bytes, Lifetime lifetime)
      : lifetime_(lifetime), pages_((bytes + kPageBytes - 1) / kPageBytes) {}

  // False if the access races; conflict() then tells with what.
  bool access(std::size_t offset, std::size_t size, Touch kind, const Actor& actor, Site site) {
    while (size > 0) {
      const std::size_t within = offset % kPageBytes;
      const std::size_t here = size < kPageBytes - within ? size : kPageBytes - within;
      if (!access_page(offset / kPageBytes, within, here, kind, actor, site)) return false;
      offset += here;
      size -= here;
    }
    return true;
  }

  const Conflict& conflict() const { return conflict_; }

 private:
  static constexpr std::size_t kPageBytes = 1024;
  static constexpr unsigned kCoarsest = 4;  // granules of 2^4 bytes

  struct Record {
    enum class Scope : std::uint8_t { lanes, warps, blocks };
    Site site;
    std::uint32_t block = 0;  // 0: nothing recorded
    std::uint32_t epoch = 0;
    std::uint32_t generation = 0;
    std::uint32_t lanes = 0;
    std::uint16_t warp = 0;
    std::uint16_t thread = 0;
    Scope scope = Scope::lanes;
    bool atomic = false;
  };
  struct Cell {
    Record write;
    Record read;
  };
  // Pages start coarse, for 16-byte accesses, and are split when a narrower one comes.
  struct Page {
    unsigned granule_log2 = kCoarsest;
    std::vector<Cell> cells;
  };

  bool ordered(const Record& record, const Actor& actor) const {
    if (record.block == 0) return true;
    if (record.block != actor.block) return lifetime_ == Lifetime::block;
    if (record.scope == Record::Scope::blocks) return false;
    if (record.epoch != actor.epoch) return true;
    if (record.scope == Record::Scope::warps || record.warp != actor.warp) return false;
    std::uint32_t others = record.lanes & ~(1u << actor.lane);
    while (others != 0) {
      const auto lane = static_cast<unsigned>(__builtin_ctz(others));
      if (!actor.order->visible(actor.lane, lane, record.generation)) return false;
      others &= others - 1;
    }
    return true;
  }

  static void replace(Record& record, const Actor& actor, Site site, bool atomic) {
    record.site = site;
    record.block = actor.block;
    record.epoch = actor.epoch;
    record.generation = actor.order->generation;
    record.lanes = 1u << actor.lane;
    record.warp = actor.warp;
    record.thread = actor.thread;
    record.scope = Record::Scope::lanes;
    record.atomic = atomic;
  }

  static void join(Record& record, const Actor& actor, Site site) {
    if (record.scope == Record::Scope::blocks) return;
    if (record.block != actor.block) {
      record.scope = Record::Scope::blocks;
    } else if (record.warp != actor.warp) {
      record.scope = Record::Scope::warps;
    } else if (record.scope == Record::Scope::lanes) {
      // The earliest generation of the set stands for all: it may miss a race between lanes that
      // sync by different partial masks, and never reports one that is none.
      record.lanes |= 1u << actor.lane;
      record.site = site;
      record.thread = actor.thread;
    }
  }

  bool report(const Record& record, bool wrote, const Actor& actor) {
    conflict_.earlier_wrote = wrote;
    conflict_.other_block = record.block != actor.block;
    conflict_.block = record.block;
    conflict_.thread = record.thread;
    conflict_.site = record.site;
    return false;
  }

  bool access_cell(Cell& cell, Touch kind, const Actor& actor, Site site) {
    const bool after_writes = ordered(cell.write, actor);
    const bool both_atomic = kind == Touch::atomic && cell.write.atomic;
    if (!after_writes && !both_atomic) return report(cell.write, true, actor);
    if (kind == Touch::load) {
      if (ordered(cell.read, actor)) {
        replace(cell.read, actor, site, false);
      } else {
        join(cell.read, actor, site);
      }
      return true;
    }
    if (!ordered(cell.read, actor)) return report(cell.read, false, actor);
    if (after_writes) {
      replace(cell.write, actor, site, kind == Touch::atomic);
    } else {
      join(cell.write, actor, site);
    }
    cell.read.block = 0;
    return true;
  }

  bool access_page(std::size_t index, std::size_t within, std::size_t size, Touch kind,
                   const Actor& actor, Site site) {
    auto& page = pages_[index];
    if (!page) {
      page = std::make_unique<Page>();
      page->cells.resize(kPageBytes >> kCoarsest);
    }
    const auto needed = static_cast<unsigned>(__builtin_ctzll(within | size | (1u << kCoarsest)));
    if (needed < page->granule_log2) split(*page, needed);
    const std::size_t end = (within + size) >> page->granule_log2;
    for (std::size_t i = within >> page->granule_log2; i < end; ++i)
      if (!access_cell(page->cells[i], kind, actor, site)) return false;
    return true;
  }

  static void split(Page& page, unsigned granule_log2) {
    std::vector<Cell> cells(kPageBytes >> granule_log2);
    const unsigned shift = page.granule_log2 - granule_log2;
    for (std::size_t i = 0; i < cells.size(); ++i) cells[i] = page.cells[i >> shift];
    page.cells = std::move(cells);
    page.granule_log2 = granule_log2;
  }

  Lifetime lifetime_;
  Conflict conflict_;
  std::vector<std::unique_ptr<Page>> pages_;
};

}  // namespace siamcuda::emulator
