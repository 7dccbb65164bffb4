// Who meets whom in which round (cpu/meetings.h).
#include "cpu/meetings.h"

#include <map>
#include <set>
#include <utility>

#include "check.h"

namespace siamcuda::cpu {
namespace {

using Rounds = std::vector<std::vector<Meeting>>;
using Pairs = std::map<std::pair<int64_t, int64_t>, int>;

Pairs count(const Rounds& rounds) {
  Pairs met;
  for (const auto& round : rounds) {
    for (const Meeting& m : round) ++met[{m.first, m.second}];
  }
  return met;
}

SIAM_TEST(everybody_meets_everybody_once) {
  for (int64_t n = 0; n <= 33; ++n) {
    const Rounds rounds = rounds_within(n);
    Pairs expected;
    for (int64_t a = 0; a < n; ++a) {
      for (int64_t b = a; b < n; ++b) expected[{a, b}] = 1;
    }
    SIAM_CHECK(count(rounds) == expected);
    for (size_t t = 0; t < rounds.size(); ++t) {
      std::set<int64_t> seen;
      for (const Meeting& m : rounds[t]) {
        // The first round is that of everybody alone: gradients begin there.
        SIAM_CHECK((m.first == m.second) == (t == 0));
        SIAM_CHECK(seen.insert(m.first).second);
        SIAM_CHECK(t == 0 || seen.insert(m.second).second);
      }
    }
    SIAM_CHECK(static_cast<int64_t>(rounds.size()) <= std::max<int64_t>(n, 1) + 1);
  }
}

SIAM_TEST(two_lists_meet_once) {
  for (int64_t n = 0; n <= 9; ++n) {
    for (int64_t m = 0; m <= 9; ++m) {
      const Rounds rounds = rounds_between(n, m);
      Pairs expected;
      for (int64_t a = 0; a < n; ++a) {
        for (int64_t b = 0; b < m; ++b) expected[{a, b}] = 1;
      }
      SIAM_CHECK(count(rounds) == expected);
      for (const auto& round : rounds) {
        std::set<int64_t> first, second;
        for (const Meeting& meeting : round) {
          SIAM_CHECK(first.insert(meeting.first).second);
          SIAM_CHECK(second.insert(meeting.second).second);
        }
      }
    }
  }
}

}  // namespace
}  // namespace siamcuda::cpu

SIAM_TEST_MAIN()
