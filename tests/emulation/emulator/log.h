// One line of JSON per launch, appended to the file that SIAM_EMULATOR_LOG names: the kernel, its
// grid and block, and what statistics.h counted at each of its memory accesses. It is how a test in
// Python sees which kernels an operator launched. Read at every launch: it may be set and unset
// while a program runs.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "machine.h"

namespace siamcuda::emulator {

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

// Lives around one launch. Statistics that the program collects itself go on without this launch.
class LaunchLog {
 public:
  LaunchLog(const std::string& kernel, dim3 grid, dim3 block) {
    const char* path = std::getenv("SIAM_EMULATOR_LOG");
    if (path == nullptr || *path == '\0') return;
    path_ = path;
    const auto text = [](dim3 d) {
      return "[" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
             "]";
    };
    line_ = "{\"kernel\": " + quoted(kernel) + ", \"grid\": " + text(grid) +
            ", \"block\": " + text(block) + ", \"sites\": [";
    std::swap(own_, machine.statistics);
    machine.statistics.enabled = true;
  }
  ~LaunchLog() {
    if (!path_.empty()) std::swap(own_, machine.statistics);
  }
  LaunchLog(const LaunchLog&) = delete;
  LaunchLog& operator=(const LaunchLog&) = delete;

  // After a launch that found nothing wrong.
  void write() {
    if (path_.empty()) return;
    const char* comma = "";
    for (const Statistic& s : machine.statistics.totals()) {
      line_ += comma;
      line_ += "{\"kind\": " + quoted(name_of(s.kind)) + ", \"file\": " + quoted(s.file) +
               ", \"line\": " + std::to_string(s.line) + ", \"bytes\": " + std::to_string(s.bytes) +
               ", \"requests\": " + std::to_string(s.requests) +
               ", \"sectors\": " + std::to_string(s.sectors) +
               ", \"ideal_sectors\": " + std::to_string(s.ideal_sectors) +
               ", \"max_conflict\": " + std::to_string(s.max_conflict) + "}";
      comma = ", ";
    }
    line_ += "]}\n";
    std::FILE* const file = std::fopen(path_.c_str(), "a");
    const bool written =
        file != nullptr && std::fwrite(line_.data(), 1, line_.size(), file) == line_.size();
    if (file == nullptr || std::fclose(file) != 0 || !written)
      throw Error("log", "can't write to SIAM_EMULATOR_LOG=" + path_);
  }

 private:
  std::string path_, line_;
  Statistics own_;
};

}  // namespace siamcuda::emulator
