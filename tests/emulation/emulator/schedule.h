// The order in which threads of a block, and blocks of a grid, get their turn.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace siamcuda::emulator {

struct Schedule {
  enum class Order { forward, reverse, random };
  Order order = Order::forward;
  std::uint64_t seed = 0;

  static Schedule forward() { return {Order::forward, 0}; }
  static Schedule reverse() { return {Order::reverse, 0}; }
  static Schedule random(std::uint64_t seed) { return {Order::random, seed}; }

  // "forward", "reverse", "random" or "random:SEED"
  static Schedule parse(const std::string& text) {
    if (text == "forward") return forward();
    if (text == "reverse") return reverse();
    if (text == "random") return random(1);
    if (text.rfind("random:", 0) == 0) return random(std::stoull(text.substr(7)));
    throw std::invalid_argument("SIAM_EMULATOR_SCHEDULE is forward, reverse or random:SEED, not '" +
                                text + "'");
  }
};

// xorshift: the schedule must be the same on every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du) {
    if (state_ == 0) state_ = 1;
  }
  std::uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  std::uint64_t below(std::uint64_t bound) { return (next() >> 11) % bound; }

 private:
  std::uint64_t state_;
};

// Threads of a block: a fresh order for each pass over those that can run.
class ThreadOrder {
 public:
  ThreadOrder(const Schedule& schedule, unsigned threads)
      : random_(schedule.order == Schedule::Order::random), order_(threads) {
    std::iota(order_.begin(), order_.end(), 0u);
    if (schedule.order == Schedule::Order::reverse) {
      for (unsigned i = 0; i < threads; ++i) order_[i] = threads - 1 - i;
    }
  }
  const std::vector<unsigned>& next_pass(Random& random) {
    if (random_) {
      for (std::size_t i = order_.size(); i > 1; --i)
        std::swap(order_[i - 1], order_[random.below(i)]);
    }
    return order_;
  }

 private:
  bool random_;
  std::vector<unsigned> order_;
};

// Blocks of a grid: i -> a * i + b (mod n) with a coprime to n visits every block once without a
// table, which a grid of 2^31 blocks could not have.
class BlockOrder {
 public:
  BlockOrder(const Schedule& schedule, std::uint64_t blocks, Random& random) : blocks_(blocks) {
    if (schedule.order == Schedule::Order::reverse) {
      factor_ = blocks - 1;
      offset_ = blocks - 1;
    } else if (schedule.order == Schedule::Order::random) {
      do {
        factor_ = 1 + random.below(blocks);
      } while (std::gcd(factor_, blocks) != 1);
      offset_ = random.below(blocks);
    }
  }
  std::uint64_t operator[](std::uint64_t i) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::uint64_t>((Wide{factor_} * i + offset_) % blocks_);
  }

 private:
  std::uint64_t blocks_;
  std::uint64_t factor_ = 1;
  std::uint64_t offset_ = 0;
};

}  // namespace siamcuda::emulator
