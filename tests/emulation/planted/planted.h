// Planted bugs: does the emulator find what it promises to find?
//
// One file per bug, and nothing else to edit: the build includes every planted/*.cuh. A file holds
// a kernel templated on `bug`, in which the mistake and its repair stand side by side, and a
// SIAM_PLANTED block that launches it. The driver runs each with bug = true, which must end in an
// error of the given kind whose message holds the given words, and with bug = false, which must
// pass; both under every schedule.
//
//   SIAM_PLANTED(name_of_the_file, "shared race", "words of the message") {
//     const float* x = bench.input(64);
//     float* y = bench.output(64);
//     SIAM_LAUNCH((name_kernel<bug>), 1, 64, 0, bench.stream, x, y);
//   }
#pragma once

#include <string>
#include <vector>

#include "platform.cuh"

#if defined(SIAM_EMULATED)
#include "bench.h"
#else
#include "bench_native.h"
#endif

namespace siamcuda::planted {

using namespace siamcuda::cuda;

struct Planted {
  std::string name;
  std::string kind;
  std::string words;
  void (*run)(Bench&, bool bug);
};

inline std::vector<Planted>& all_planted() {
  static std::vector<Planted> planted;
  return planted;
}

struct Register {
  explicit Register(Planted planted) { all_planted().push_back(std::move(planted)); }
};

}  // namespace siamcuda::planted

#define SIAM_PLANTED(name, kind, words)                                            \
  template <bool bug>                                                              \
  void run_##name(Bench& bench);                                                   \
  inline void run_either_##name(Bench& bench, bool with_bug) {                     \
    with_bug ? run_##name<true>(bench) : run_##name<false>(bench);                 \
  }                                                                                \
  inline const Register register_##name({#name, kind, words, &run_either_##name}); \
  template <bool bug>                                                              \
  void run_##name([[maybe_unused]] Bench& bench)
