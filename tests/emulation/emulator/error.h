// What a failed check throws, and the place in the kernel text it speaks of.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace siamcuda::emulator {

// `kind` is one of a fixed set of phrases ("shared race", "divergent barrier", ...), so that a test
// can ask for the right finding and not merely for some failure.
class Error : public std::runtime_error {
 public:
  Error(std::string kind, const std::string& message)
      : std::runtime_error(message), kind_(std::move(kind)) {}
  const std::string& kind() const { return kind_; }

 private:
  std::string kind_;
};

// A call site in one word, small enough to be kept beside every byte of memory: user-space
// pointers need 47 bits, which leaves 16 for the line.
class Site {
 public:
  Site() = default;
  Site(const char* file, int line)
      : packed_((reinterpret_cast<std::uint64_t>(file) << 16) |
                static_cast<std::uint16_t>(line < 65535 ? line : 65535)) {}
  const char* file() const { return reinterpret_cast<const char*>(packed_ >> 16); }
  int line() const { return static_cast<int>(packed_ & 0xFFFF); }
  bool known() const { return packed_ != 0; }

  // Two translation units may hold two copies of the same file name.
  bool operator==(const Site& other) const {
    return packed_ == other.packed_ || (line() == other.line() && known() && other.known() &&
                                        std::strcmp(file(), other.file()) == 0);
  }
  bool operator!=(const Site& other) const { return !(*this == other); }

  std::string text() const {
    return known() ? std::string(file()) + ":" + std::to_string(line()) : "(unknown site)";
  }

 private:
  std::uint64_t packed_ = 0;
};

}  // namespace siamcuda::emulator

// Default arguments that record the caller; the only way to know the site of a plain function call.
#define SIAM_EMULATOR_SITE \
  const char *siam_file = __builtin_FILE(), int siam_line = __builtin_LINE()
#define SIAM_EMULATOR_HERE ::siamcuda::emulator::Site(siam_file, siam_line)
