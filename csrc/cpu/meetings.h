// Which blocks of rows meet in which round: every two once, none twice in a round.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace siamcuda::cpu {

// Two blocks whose pairs are computed in one round; a block may meet itself.
struct Meeting {
  int64_t first;
  int64_t second;
};

// Blocks 0 … n−1 with each other, first each with itself: a tournament by the circle method, where
// one block keeps its place and the others go round.
inline std::vector<std::vector<Meeting>> rounds_within(int64_t n) {
  std::vector<std::vector<Meeting>> rounds(1);
  for (int64_t b = 0; b < n; ++b) rounds[0].push_back({b, b});
  const int64_t circle = n - 1 + n % 2;  // an odd number gets a block that doesn't exist
  for (int64_t t = 0; t < circle && n > 1; ++t) {
    std::vector<Meeting> round;
    if (circle < n) round.push_back({std::min(t, circle), std::max(t, circle)});
    for (int64_t k = 1; k <= (circle - 1) / 2; ++k) {
      const int64_t a = (t + k) % circle, b = (t - k + circle) % circle;
      round.push_back({std::min(a, b), std::max(a, b)});
    }
    rounds.push_back(round);
  }
  return rounds;
}

// Blocks 0 … n−1 of one list with blocks 0 … m−1 of another.
inline std::vector<std::vector<Meeting>> rounds_between(int64_t n, int64_t m) {
  const int64_t larger = std::max(n, m);
  std::vector<std::vector<Meeting>> rounds;
  for (int64_t t = 0; t < larger; ++t) {
    std::vector<Meeting> round;
    for (int64_t a = 0; a < n; ++a) {
      if ((a + t) % larger < m) round.push_back({a, (a + t) % larger});
    }
    rounds.push_back(round);
  }
  return rounds;
}

}  // namespace siamcuda::cpu
