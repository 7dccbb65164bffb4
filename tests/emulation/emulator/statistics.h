// What a profiler would count, per call site: sectors per global request, bank conflicts per shared
// one. Lanes run one after another here, so the k-th access of each lane of a warp at one site is
// taken as the k-th request of that warp; true as long as the lanes take the same path.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "error.h"

namespace siamcuda::emulator {

enum class Kind {
  global_load,
  global_store,
  global_atomic,
  shared_load,
  shared_store,
  shared_atomic
};

inline const char* name_of(Kind kind) {
  static constexpr const char* names[] = {"global_load", "global_store", "global_atomic",
                                          "shared_load", "shared_store", "shared_atomic"};
  return names[static_cast<int>(kind)];
}

struct Statistic {
  Kind kind;
  std::string file;
  int line;
  int bytes;                    // per lane and access
  std::uint64_t requests;       // warp-wide instructions
  std::uint64_t sectors;        // global: 32-byte sectors touched, summed over the requests
  std::uint64_t ideal_sectors;  // global: the fewest sectors that could hold the distinct bytes
  int max_conflict;             // shared: ways of the worst bank conflict; 1 is free of conflicts
};

class Statistics {
 public:
  bool enabled = false;

  void record(Kind kind, Site site, std::size_t bytes, unsigned thread, std::uint64_t address) {
    Log& log = logs_[Key(kind, site.file(), site.line(), static_cast<int>(bytes))];
    if (log.of_thread.size() <= thread) log.of_thread.resize(thread + 1);
    log.of_thread[thread].push_back(address);
  }

  void finish_block() {
    for (auto& [key, log] : logs_) {
      for (std::size_t first = 0; first < log.of_thread.size(); first += 32)
        add_warp(key, log, first);
      for (auto& addresses : log.of_thread) addresses.clear();
    }
  }

  // A launch that failed leaves half a block; it would spoil the counts.
  void drop_block() { logs_.clear(); }

  void reset() {
    logs_.clear();
    totals_.clear();
  }

  std::vector<Statistic> totals() const {
    std::vector<Statistic> all;
    for (const auto& [key, total] : totals_) {
      const auto& [kind, file, line, bytes] = key;
      all.push_back({kind, file, line, bytes, total.requests, total.sectors, total.ideal_sectors,
                     total.max_conflict});
    }
    return all;
  }

 private:
  using Key = std::tuple<Kind, std::string, int, int>;
  struct Log {
    std::vector<std::vector<std::uint64_t>> of_thread;
  };
  struct Total {
    std::uint64_t requests = 0;
    std::uint64_t sectors = 0;
    std::uint64_t ideal_sectors = 0;
    int max_conflict = 0;
  };

  void add_warp(const Key& key, const Log& log, std::size_t first) {
    const std::size_t last = std::min(first + 32, log.of_thread.size());
    std::size_t requests = 0;
    for (std::size_t t = first; t < last; ++t)
      requests = std::max(requests, log.of_thread[t].size());
    if (requests == 0) return;
    const auto kind = std::get<Kind>(key);
    const auto bytes = static_cast<std::uint64_t>(std::get<3>(key));
    Total& total = totals_[key];
    total.requests += requests;
    for (std::size_t k = 0; k < requests; ++k) {
      std::vector<std::pair<unsigned, std::uint64_t>> lanes;
      for (std::size_t t = first; t < last; ++t)
        if (k < log.of_thread[t].size())
          lanes.emplace_back(static_cast<unsigned>(t - first), log.of_thread[t][k]);
      if (kind == Kind::global_load || kind == Kind::global_store || kind == Kind::global_atomic) {
        count_sectors(lanes, bytes, total);
      } else {
        total.max_conflict = std::max(total.max_conflict, conflict_ways(lanes, bytes));
      }
    }
  }

  using Lanes = std::vector<std::pair<unsigned, std::uint64_t>>;

  static void count_sectors(const Lanes& lanes, std::uint64_t bytes, Total& total) {
    std::vector<std::uint64_t> sectors, addresses;
    for (const auto& [lane, address] : lanes) {
      addresses.push_back(address);
      for (std::uint64_t s = address / 32; s <= (address + bytes - 1) / 32; ++s)
        sectors.push_back(s);
    }
    total.sectors += distinct(sectors);
    total.ideal_sectors += (distinct(addresses) * bytes + 31) / 32;
  }

  // 32 banks of 4 bytes serve one word each per cycle, to any number of lanes. Accesses of 8 and 16
  // bytes go in two and four phases, each of which fills the banks once.
  static int conflict_ways(const Lanes& lanes, std::uint64_t bytes) {
    const unsigned phases = bytes <= 4 ? 1 : bytes <= 8 ? 2 : 4;
    std::size_t worst = 0;
    for (unsigned phase = 0; phase < phases; ++phase) {
      std::array<std::vector<std::uint64_t>, 32> words_of_bank;
      for (const auto& [lane, address] : lanes) {
        if (lane / (32 / phases) != phase) continue;
        for (std::uint64_t w = address / 4; w <= (address + bytes - 1) / 4; ++w)
          words_of_bank[w % 32].push_back(w);
      }
      for (auto& words : words_of_bank) worst = std::max(worst, distinct(words));
    }
    return static_cast<int>(worst);
  }

  static std::size_t distinct(std::vector<std::uint64_t>& values) {
    std::sort(values.begin(), values.end());
    return static_cast<std::size_t>(std::unique(values.begin(), values.end()) - values.begin());
  }

  std::map<Key, Log> logs_;
  std::map<Key, Total> totals_;
};

}  // namespace siamcuda::emulator
