// A launch: CUDA's limits, the kernel's arguments bound once, then every block.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "log.h"
#include "machine.h"
#include "shared.h"

namespace siamcuda::emulator {

// Starts from SIAM_EMULATOR_SCHEDULE, so that a whole test run can be repeated in another order.
inline Schedule& current_schedule() {
  static Schedule schedule = [] {
    const char* text = std::getenv("SIAM_EMULATOR_SCHEDULE");
    return text == nullptr || *text == '\0' ? Schedule::forward() : Schedule::parse(text);
  }();
  return schedule;
}
inline void set_schedule(const Schedule& schedule) {
  std::lock_guard<std::recursive_mutex> lock(machine_mutex());
  current_schedule() = schedule;
}

inline void enable_statistics(bool enabled) {
  std::lock_guard<std::recursive_mutex> lock(machine_mutex());
  machine.statistics.enabled = enabled;
}
inline void reset_statistics() {
  std::lock_guard<std::recursive_mutex> lock(machine_mutex());
  machine.statistics.reset();
}
inline std::vector<Statistic> statistics() {
  std::lock_guard<std::recursive_mutex> lock(machine_mutex());
  return machine.statistics.totals();
}

inline constexpr std::size_t kMaxParameterBytes = 4096;

inline void check_limits(const std::string& kernel, dim3 grid, dim3 block, std::size_t shared,
                         Site site) {
  const auto limit = [&](bool kept, const std::string& message) {
    if (!kept)
      throw Error("launch limit",
                  "launch limit at " + site.text() + ": " + kernel + ": " + message);
  };
  const auto text = [](dim3 d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
           ")";
  };
  limit(grid.x > 0 && grid.y > 0 && grid.z > 0, "the grid " + text(grid) + " is empty");
  limit(block.x > 0 && block.y > 0 && block.z > 0, "the block " + text(block) + " is empty");
  limit(grid.x <= 0x7FFFFFFFu, "grid.x of " + text(grid) + " is above 2^31 - 1");
  limit(grid.y <= 65535 && grid.z <= 65535,
        "grid.y or grid.z of " + text(grid) + " is above 65535");
  limit(block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
            std::uint64_t{block.x} * block.y * block.z <= Machine::kMaxThreads,
        "the block " + text(block) + " has more than 1024 threads (or 64 in z)");
  limit(shared <= kMaxShared,
        std::to_string(shared) + " bytes of dynamic shared memory, the " + "limit is 227 KB");
}

template <class... Parameters, class... Arguments>
void launch(const char* name, Site site, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  static_assert((std::size_t{0} + ... + sizeof(Parameters)) <= kMaxParameterBytes,
                "kernel arguments take more than 4 KB");
  std::lock_guard<std::recursive_mutex> lock(machine_mutex());
  std::string label = name;  // "(scale_kernel<float>)", as SIAM_LAUNCH is given it
  if (label.size() > 2 && label.front() == '(' && label.back() == ')')
    label = label.substr(1, label.size() - 2);
  if (machine.running()) throw Error("launch", label + ": launched from a kernel");
  check_limits(label, grid, block, shared, site);

  using Bound = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  Bound bound{kernel, {static_cast<Parameters>(arguments)...}};
  Body body;
  body.data = &bound;
  body.call = [](void* data) {
    auto& [function, values] = *static_cast<Bound*>(data);
    std::apply(function, values);
  };
  machine.dynamic_shared_bytes = shared;
  LaunchLog log(label, grid, block);
  machine.run(label, body, grid, block, current_schedule());
  log.write();
}

}  // namespace siamcuda::emulator
