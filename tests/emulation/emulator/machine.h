// The state of the one emulated device: the block that runs, its threads and warps, and the
// scheduler that gives them their turns. Collectives and memory accesses are free functions over
// it.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "fiber.h"
#include "memory.h"
#include "schedule.h"
#include "shadow.h"
#include "statistics.h"
#include "vector_types.h"

namespace siamcuda::emulator {

enum class State : std::uint8_t { ready, in_warp_collective, at_barrier, done };

enum class Collective : std::uint8_t { barrier, sync, shuffle, ballot, any, all, ldmatrix, mma };

inline const char* name_of(Collective collective) {
  static constexpr const char* names[] = {"__syncthreads", "__syncwarp", "a shuffle",
                                          "__ballot_sync", "__any_sync", "__all_sync",
                                          "ldmatrix",      "mma.sync"};
  return names[static_cast<int>(collective)];
}

// What a thread waits for. `source` is the lane that a shuffle reads, or -1 for its own value.
struct Wait {
  Collective collective = Collective::barrier;
  Site site;
  std::uint32_t mask = 0;
  int source = -1;
  std::uint64_t value = 0;
  std::uint64_t result = 0;
};

// The lanes that wait in one collective; kept so that an arrival need not look at all lanes.
struct Meeting {
  Collective collective = Collective::barrier;
  Site site;
  std::uint32_t mask = 0;
  std::uint32_t arrived = 0;  // 0: nobody waits
};

struct Segment;

// One cp.async that has not landed; see async_copy.h.
struct AsyncCopy {
  Segment* segment;
  std::size_t offset;
  const void* source;
  std::size_t valid_bytes;
  std::uint64_t group;  // how many groups the thread had committed before
  Site site;
};

struct Thread {
  Fiber* fiber = nullptr;
  State state = State::ready;
  std::uint16_t id = 0;
  std::uint16_t warp = 0;
  std::uint16_t lane = 0;
  uint3 index{0, 0, 0};
  Wait wait;
  std::vector<AsyncCopy> copies;
  std::uint64_t committed = 0;  // groups of cp.async
};

// One __shared__ array of the running block.
struct Segment {
  const void* key;
  std::string name;
  std::size_t bytes;
  std::unique_ptr<double[]> storage;
  std::vector<std::uint8_t> written;
  Shadow shadow;
  std::uint32_t block = 0;            // whose contents these are
  std::vector<std::uint8_t> pending;  // bytes that a cp.async will overwrite; empty: none ever
  std::size_t pending_bytes = 0;

  char* data() const { return reinterpret_cast<char*>(storage.get()); }
};

// The kernel with its arguments bound.
struct Body {
  void (*call)(void*) = nullptr;
  void* data = nullptr;
};

class Machine {
 public:
  static constexpr std::size_t kMaxThreads = 1024;

  // Read on every access, hence public and plain; only the scheduler writes them.
  Thread* current = nullptr;
  std::uint32_t block = 0;
  std::uint32_t epoch = 0;
  std::array<WarpOrder, kMaxThreads / 32> order;
  std::array<Thread, kMaxThreads> threads;
  // By warp and by the lowest lane of the mask, which disjoint masks do not share.
  std::array<std::array<Meeting, 32>, kMaxThreads / 32> meetings;
  std::vector<std::unique_ptr<Segment>> segments;
  std::unique_ptr<LaunchMemory> memory;
  std::size_t dynamic_shared_bytes = 0;
  std::size_t static_shared_bytes = 0;
  Statistics statistics;

  bool running() const { return running_; }

  Actor actor() const {
    return {block, epoch, current->id, current->warp, current->lane, &order[current->warp]};
  }

  Thread& lane(unsigned warp, unsigned lane) { return threads[warp * 32 + lane]; }
  bool exists(unsigned warp, unsigned lane) const { return warp * 32 + lane < thread_count_; }

  void run(const std::string& kernel, Body body, dim3 grid, dim3 block_shape,
           const Schedule& schedule) {
    begin(kernel, body, grid, block_shape);
    struct End {
      Machine& machine;
      ~End() { machine.end(); }
    } end{*this};
    Random random(schedule.seed);
    ThreadOrder thread_order(schedule, thread_count_);
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    BlockOrder block_order(schedule, blocks, random);
    for (std::uint64_t i = 0; i < blocks; ++i) {
      const std::uint64_t id = block_order[i];
      blockIdx.x = static_cast<unsigned>(id % grid.x);
      blockIdx.y = static_cast<unsigned>(id / grid.x % grid.y);
      blockIdx.z = static_cast<unsigned>(id / grid.x / grid.y);
      run_block(thread_order, random);
    }
  }

  // On a fiber: gives the turn back until the scheduler, or another thread, makes this one ready.
  void wait(State state) {
    current->state = state;
    current->fiber->leave();
  }

  // __syncthreads. See Note [Divergence] in collectives.h.
  void barrier(Site site) {
    Thread& me = *current;
    me.wait = Wait{};
    me.wait.site = site;
    if (done_ > 0) {
      fail("divergent barrier", site,
           "reached __syncthreads after " + describe(*first_in(State::done)) + " had exited");
    }
    if (at_barrier_ > 0) {
      const Thread& other = *first_in(State::at_barrier);
      if (other.wait.site != site)
        fail("divergent barrier", site,
             "reached __syncthreads while " + describe(other) + " waits at the one at " +
                 other.wait.site.text());
    }
    const Thread* waiting = waiting_for(me);
    if (waiting != nullptr)
      fail("divergent warp collective", waiting->wait.site,
           "went to __syncthreads at " + site.text() + " while " + describe(*waiting) +
               " waits for it in " + name_of(waiting->wait.collective));
    if (++at_barrier_ < thread_count_) {
      wait(State::at_barrier);
      return;
    }
    at_barrier_ = 0;
    ++epoch;
    for (unsigned t = 0; t < thread_count_; ++t) threads[t].state = State::ready;
  }

  [[noreturn]] void fail(const char* kind, Site site, const std::string& detail) const {
    std::string where = running_ ? "block " + text(blockIdx) : std::string();
    if (running_ && current != nullptr) where += ", thread " + text(current->index);
    throw Error(kind, std::string(kind) + " at " + site.text() + ": " + kernel_ +
                          (where.empty() ? "" : ", ") + where + ": " + detail);
  }

  std::string describe(const Thread& thread) const {
    return "thread " + text(thread.index) + " (warp " + std::to_string(thread.warp) + ", lane " +
           std::to_string(thread.lane) + ")";
  }
  std::string describe_thread(unsigned id) const { return describe(threads[id]); }
  std::string describe_block(std::uint32_t ordinal) const {
    return "the block that ran as number " + std::to_string(ordinal);
  }

 private:
  static std::string text(const uint3& index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
           std::to_string(index.z) + ")";
  }

  void begin(const std::string& kernel, Body body, dim3 grid, dim3 block_shape) {
    kernel_ = kernel;
    body_ = body;
    thread_count_ = block_shape.x * block_shape.y * block_shape.z;
    gridDim = grid;
    blockDim = block_shape;
    block = 0;
    memory = std::make_unique<LaunchMemory>();
    for (unsigned t = 0; t < thread_count_; ++t) {
      Thread& thread = threads[t];
      thread.id = static_cast<std::uint16_t>(t);
      thread.warp = static_cast<std::uint16_t>(t / 32);
      thread.lane = static_cast<std::uint16_t>(t % 32);
      thread.index = {t % block_shape.x, t / block_shape.x % block_shape.y,
                      t / block_shape.x / block_shape.y};
    }
    // Generations only grow, from launch to launch, so that no table has to be cleared. Far below
    // the end of the counter they start again.
    for (WarpOrder& warp : order)
      if (warp.generation > 0x7FFFFFFFu) warp = WarpOrder{};
    running_ = true;
  }

  void end() {
    for (unsigned t = 0; t < thread_count_; ++t) {
      threads[t].copies.clear();
      if (threads[t].fiber == nullptr) continue;
      threads[t].fiber->reset();
      fibers_.give_back(threads[t].fiber);
      threads[t].fiber = nullptr;
    }
    for (auto& of_warp : meetings)
      for (Meeting& meeting : of_warp) meeting.arrived = 0;
    statistics.drop_block();
    current = nullptr;
    segments.clear();
    memory.reset();
    dynamic_shared_bytes = static_shared_bytes = 0;
    body_ = {};
    failure_ = nullptr;
    running_ = false;
  }

  void run_block(ThreadOrder& thread_order, Random& random) {
    ++block;
    epoch = 1;
    done_ = at_barrier_ = 0;
    for (unsigned t = 0; t < thread_count_; ++t) {
      threads[t].state = State::ready;
      threads[t].committed = 0;
    }
    while (done_ < thread_count_) {
      bool progress = false;
      for (unsigned t : thread_order.next_pass(random)) {
        if (threads[t].state != State::ready) continue;
        progress = true;
        resume(threads[t]);
      }
      if (!progress) deadlock();
    }
    if (statistics.enabled) statistics.finish_block();
  }

  void resume(Thread& thread) {
    if (thread.fiber == nullptr) thread.fiber = fibers_.take(&Machine::thread_main);
    current = &thread;
    threadIdx = thread.index;
    thread.fiber->enter();
    current = nullptr;
    if (failure_) {
      const std::exception_ptr failure = failure_;
      failure_ = nullptr;
      std::rethrow_exception(failure);
    }
    if (thread.state == State::done) {
      fibers_.give_back(thread.fiber);
      thread.fiber = nullptr;
    }
  }

  // An exception must not leave the fiber's stack: it is carried to the host and thrown there.
  static void thread_main();
  void run_thread() {
    try {
      body_.call(body_.data);
      exit_thread();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  void exit_thread() {
    Thread& me = *current;
    if (!me.copies.empty())
      fail("asynchronous copy in flight", me.copies.front().site,
           "exited before it waited for this copy");
    me.state = State::done;
    ++done_;
    if (at_barrier_ > 0) {
      const Thread& other = *first_in(State::at_barrier);
      fail("divergent barrier", other.wait.site,
           "exited while " + describe(other) + " waits at __syncthreads");
    }
    const Thread* waiting = waiting_for(me);
    if (waiting != nullptr)
      fail("divergent warp collective", waiting->wait.site,
           "exited while " + describe(*waiting) + " waits for it in " +
               name_of(waiting->wait.collective));
  }

  // A thread of the warp that waits in a collective which names `me`.
  const Thread* waiting_for(const Thread& me) const {
    const unsigned first = me.warp * 32u;
    for (unsigned t = first; t < first + 32 && t < thread_count_; ++t) {
      const Thread& other = threads[t];
      if (other.state == State::in_warp_collective && (other.wait.mask >> me.lane & 1u))
        return &other;
    }
    return nullptr;
  }

  [[noreturn]] void deadlock() const {
    std::string detail = "no thread can go on:";
    Site first;
    int listed = 0;
    for (unsigned t = 0; t < thread_count_ && listed < 8; ++t) {
      const Thread& thread = threads[t];
      if (thread.state == State::done) continue;
      if (!first.known()) first = thread.wait.site;
      const bool as_before = t > 0 && threads[t - 1].state == thread.state &&
                             threads[t - 1].wait.site == thread.wait.site &&
                             threads[t - 1].wait.mask == thread.wait.mask;
      if (as_before) continue;
      ++listed;
      detail += " from " + describe(thread) + " on at " + thread.wait.site.text() + " in " +
                name_of(thread.wait.collective) + ";";
    }
    fail("deadlock", first, detail);
  }

  const Thread* first_in(State state) const {
    for (unsigned t = 0; t < thread_count_; ++t)
      if (threads[t].state == state) return &threads[t];
    return nullptr;
  }

  std::string kernel_ = "kernel";
  Body body_;
  unsigned thread_count_ = 0;
  unsigned done_ = 0;
  unsigned at_barrier_ = 0;
  bool running_ = false;
  std::exception_ptr failure_;
  FiberPool fibers_;
};

inline Machine machine;

inline void Machine::thread_main() {
  Fiber* fiber = machine.current->fiber;
  fiber->arrived();
  for (;;) {
    machine.run_thread();
    fiber->leave();
  }
}

}  // namespace siamcuda::emulator
