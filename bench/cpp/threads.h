// Work on several threads at once, timed.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

namespace bench {

// Seconds from the moment all threads stand ready until the last has finished.
inline double seconds_of(int threads, const std::function<void(int)>& work) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) {
    pool.emplace_back([&, t] {
      ++ready;
      while (!go) {
      }
      work(t);
    });
  }
  while (ready != threads - 1) std::this_thread::yield();
  const auto start = Clock::now();
  go = true;
  work(0);
  for (std::thread& thread : pool) thread.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace bench
