// What a planted bug is given on the host: registered memory, and the questions a test asks of the
// outputs and the statistics after a launch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"

namespace siamcuda::planted {

class Bench {
 public:
  int stream = 0;

  Bench() {
    emulator::reset_statistics();
    emulator::enable_statistics(true);
  }
  ~Bench() {
    emulator::enable_statistics(false);
    buffers_.clear();
    for (const auto& [pointer, bytes] : mapped_) munmap(pointer, bytes);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  const float* input(std::size_t count) { return memory(count, emulator::Access::read, "input"); }
  float* output(std::size_t count) { return memory(count, emulator::Access::write, "output"); }
  float* state(std::size_t count) { return memory(count, emulator::Access::read_write, "state"); }

  // Address space only: pages come into being when touched.
  unsigned char* huge(std::size_t bytes, bool read_only) {
    void* pointer = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pointer == MAP_FAILED) throw std::bad_alloc();
    mapped_.emplace_back(pointer, bytes);
    buffers_.emplace_back(
        pointer, bytes, read_only ? emulator::Access::read : emulator::Access::read_write, "huge");
    return static_cast<unsigned char*>(pointer);
  }

  void require_all_written(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    for (const auto& buffer : buffers_)
      if (buffer.unwritten_bytes() > 0)
        throw emulator::Error("unwritten output", std::string(file) + ":" + std::to_string(line) +
                                                      ": " +
                                                      std::to_string(buffer.unwritten_bytes()) +
                                                      " bytes of an output were not written");
  }
  void require_conflict_free() const {
    for (const auto& s : emulator::statistics())
      if (s.max_conflict > 1)
        throw emulator::Error("bank conflict", std::to_string(s.max_conflict) + "-way at " +
                                                   s.file + ":" + std::to_string(s.line));
  }
  void require_coalesced() const {
    for (const auto& s : emulator::statistics())
      if (s.sectors > s.ideal_sectors)
        throw emulator::Error("uncoalesced access", std::to_string(s.sectors) + " sectors where " +
                                                        std::to_string(s.ideal_sectors) +
                                                        " would do, at " + s.file + ":" +
                                                        std::to_string(s.line));
  }
  void require_equal(float value, float expected, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) const {
    if (value != expected)
      throw emulator::Error("wrong result", std::string(file) + ":" + std::to_string(line) + ": " +
                                                std::to_string(value) + " is not " +
                                                std::to_string(expected));
  }

 private:
  float* memory(std::size_t count, emulator::Access access, const char* name) {
    // Slack on both sides: a missed finding must not be covered up by a crash.
    constexpr std::size_t slack = 1024;
    floats_.push_back(std::make_unique<std::vector<float>>(count + 2 * slack, 1.0f));
    float* pointer = floats_.back()->data() + slack;
    while (reinterpret_cast<std::uintptr_t>(pointer) % 128 != 0) ++pointer;
    buffers_.emplace_back(pointer, count * sizeof(float), access, name);
    return pointer;
  }

  std::vector<std::unique_ptr<std::vector<float>>> floats_;
  std::vector<std::pair<void*, std::size_t>> mapped_;
  std::vector<emulator::Buffer> buffers_;
};

}  // namespace siamcuda::planted
