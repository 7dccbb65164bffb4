// Lists and runs the planted bugs, one per process, for test_planted_bugs.py.
//
//   emulator_tests --list                                  name <tab> kind <tab> words, a line each
//   emulator_tests --run NAME --schedule S [--repaired]    exit 0: nothing found; 1: kind, message
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "planted.h"

namespace {

using siamcuda::planted::all_planted;
using siamcuda::planted::Bench;
using siamcuda::planted::Planted;
namespace emulator = siamcuda::emulator;

int list() {
  for (const Planted& planted : all_planted())
    std::printf("%s\t%s\t%s\n", planted.name.c_str(), planted.kind.c_str(), planted.words.c_str());
  return 0;
}

int run(const std::string& name, bool repaired) {
  for (const Planted& planted : all_planted()) {
    if (planted.name != name) continue;
    try {
      Bench bench;
      planted.run(bench, !repaired);
      return 0;
    } catch (const emulator::Error& error) {
      std::printf("%s\n%s\n", error.kind().c_str(), error.what());
    }
    // A failed launch must leave the machine fit for the next one.
    try {
      Bench bench;
      planted.run(bench, false);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "the repaired kernel fails after the bug: %s\n", error.what());
      return 2;
    }
    return 1;
  }
  std::fprintf(stderr, "no planted bug is called '%s'\n", name.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  std::sort(all_planted().begin(), all_planted().end(),
            [](const Planted& a, const Planted& b) { return a.name < b.name; });
  std::string name;
  bool repaired = false;
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string option = argv[i];
      if (option == "--list") return list();
      if (option == "--repaired") repaired = true;
      if (option == "--run" && i + 1 < argc) name = argv[++i];
      if (option == "--schedule" && i + 1 < argc)
        emulator::set_schedule(emulator::Schedule::parse(argv[++i]));
    }
    return run(name, repaired);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
