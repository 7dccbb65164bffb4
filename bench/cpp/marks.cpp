// Tells callgrind where a case begins and ends; a library that bench/instructions.py loads. As a
// program it prints whether it can: without valgrind's headers the marks do nothing.
#include <cstdio>

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#define SIAM_MARKS 1
#else
#define SIAM_MARKS 0
#endif

extern "C" {

int siam_marks() { return SIAM_MARKS; }

void siam_begin() {
#if SIAM_MARKS
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
#endif
}

// Writes a file of what was counted since siam_begin, which says `name`.
void siam_end(const char* name) {
#if SIAM_MARKS
  CALLGRIND_DUMP_STATS_AT(name);
  CALLGRIND_STOP_INSTRUMENTATION;
#else
  (void)name;
#endif
}
}

int main() {
  std::printf("{\"marks\": %d}\n", siam_marks());
  return 0;
}
