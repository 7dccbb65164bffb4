// __syncthreads, __syncwarp, shuffles and votes; matrix.h adds those of tensor cores.
//
// Note [Divergence]: a collective completes when every thread it names has come to the same place
// with the same mask. What can never complete fails at once, where the last thread involved makes
// it impossible: a named lane has exited or does not exist, waits at another collective that names
// this lane too, or waits at __syncthreads. Hardware forgives some of these (an exited lane of a
// mask); the programming guide does not promise it, so neither does this.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine.h"

namespace siamcuda::emulator {

// What a lane brings to a collective that exchanges more than a word: Wait::value points to one. It
// lies on the lane's stack, which stands still while the lane waits. Whoever comes last completes
// the operation for all 32 lanes.
struct WarpOperand {
  void (*complete)(WarpOperand* const* lanes);
};

inline void complete_warp_operation(unsigned warp) {
  WarpOperand* lanes[32];
  for (unsigned lane = 0; lane < 32; ++lane)
    lanes[lane] = reinterpret_cast<WarpOperand*>(machine.lane(warp, lane).wait.value);
  lanes[0]->complete(lanes);
}

inline void complete_warp_collective(unsigned warp, const Wait& wait) {
  if (wait.collective == Collective::ldmatrix || wait.collective == Collective::mma)
    complete_warp_operation(warp);
  std::uint32_t votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((wait.mask >> lane & 1u) && machine.lane(warp, lane).wait.value != 0) votes |= 1u << lane;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((wait.mask >> lane & 1u) == 0) continue;
    Thread& thread = machine.lane(warp, lane);
    thread.state = State::ready;
    switch (thread.wait.collective) {
      case Collective::shuffle:
        thread.wait.result =
            machine
                .lane(warp,
                      thread.wait.source < 0 ? lane : static_cast<unsigned>(thread.wait.source))
                .wait.value;
        break;
      case Collective::ballot: thread.wait.result = votes; break;
      case Collective::any: thread.wait.result = votes != 0; break;
      case Collective::all: thread.wait.result = votes == wait.mask; break;
      case Collective::sync:
      case Collective::ldmatrix:
      case Collective::mma:
      case Collective::barrier: break;
    }
  }
  if (wait.collective == Collective::sync) machine.order[warp].sync(wait.mask);
}

// Looks at every lane that the mask names: fails if they can never meet here, else returns those
// that wait here already.
inline std::uint32_t lanes_waiting_here(const Thread& me) {
  const auto& [collective, site, mask, source, value, result] = me.wait;
  const std::string what = name_of(collective);
  std::uint32_t waiting = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0 || lane == me.lane) continue;
    if (!machine.exists(me.warp, lane))
      machine.fail(
          "divergent warp collective", site,
          what + " names lane " + std::to_string(lane) + ", which the block does not have");
    const Thread& other = machine.lane(me.warp, lane);
    const auto diverge = [&](const std::string& why) {
      machine.fail("divergent warp collective", site,
                   what + " names " + machine.describe(other) + ", which " + why);
    };
    switch (other.state) {
      case State::ready: break;
      case State::done: diverge("has exited"); break;
      case State::at_barrier: diverge("waits at __syncthreads at " + other.wait.site.text()); break;
      case State::in_warp_collective:
        if (other.wait.site == site && other.wait.mask == mask &&
            other.wait.collective == collective) {
          waiting |= 1u << lane;
        } else if (other.wait.mask >> me.lane & 1u) {
          diverge(std::string("waits in ") + name_of(other.wait.collective) + " at " +
                  other.wait.site.text() + (other.wait.mask == mask ? "" : " with another mask"));
        }
        // A lane that waits for others only may still come here.
        break;
    }
  }
  return waiting;
}

inline std::uint64_t warp_collective(Collective collective, Site site, std::uint32_t mask,
                                     std::uint64_t value, int source) {
  Thread& me = *machine.current;
  me.wait = Wait{collective, site, mask, source, value, 0};
  const std::uint32_t mine = 1u << me.lane;
  if ((mask & mine) == 0)
    machine.fail("lane outside mask", site,
                 std::string("the mask given to ") + name_of(collective) +
                     " does not name the lane that gives it");
  if (source >= 0 && (mask >> source & 1u) == 0)
    machine.fail("lane outside mask", site,
                 "shuffle reads lane " + std::to_string(source) + ", which is not in the mask");
  Meeting& meeting = machine.meetings[me.warp][static_cast<unsigned>(__builtin_ctz(mask))];
  const bool expected = meeting.arrived != 0 && meeting.mask == mask &&
                        meeting.collective == collective && meeting.site == site;
  // Whoever opened the meeting has looked at all lanes, and lanes that went elsewhere since then
  // have failed there.
  const std::uint32_t arrived = (expected ? meeting.arrived : lanes_waiting_here(me)) | mine;
  if (expected || meeting.arrived == 0) {
    meeting.collective = collective;
    meeting.site = site;
    meeting.mask = mask;
    meeting.arrived = arrived == mask ? 0 : arrived;
  }
  if (arrived == mask) {
    complete_warp_collective(me.warp, me.wait);
  } else {
    machine.wait(State::in_warp_collective);
  }
  return me.wait.result;
}

template <class T>
T shuffle(Site site, unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 32- and 64-bit arithmetic types");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(Collective::shuffle, site, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane_of_this_thread() { return machine.current->lane; }

inline void check_width(Site site, int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    machine.fail("shuffle width", site, std::to_string(width) + " is no power of two up to 32");
}

}  // namespace siamcuda::emulator

namespace siamcuda {

inline void __syncthreads(SIAM_EMULATOR_SITE) { emulator::machine.barrier(SIAM_EMULATOR_HERE); }

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, SIAM_EMULATOR_SITE) {
  emulator::warp_collective(emulator::Collective::sync, SIAM_EMULATOR_HERE, mask, 0, -1);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIAM_EMULATOR_SITE) {
  emulator::check_width(SIAM_EMULATOR_HERE, width);
  const int first = emulator::lane_of_this_thread() & ~(width - 1);
  return emulator::shuffle(SIAM_EMULATOR_HERE, mask, value, first + (source & (width - 1)));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIAM_EMULATOR_SITE) {
  emulator::check_width(SIAM_EMULATOR_HERE, width);
  const int lane = emulator::lane_of_this_thread();
  const int source = lane - static_cast<int>(delta);
  return emulator::shuffle(SIAM_EMULATOR_HERE, mask, value,
                           source >= (lane & ~(width - 1)) ? source : -1);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIAM_EMULATOR_SITE) {
  emulator::check_width(SIAM_EMULATOR_HERE, width);
  const int lane = emulator::lane_of_this_thread();
  const int source = lane + static_cast<int>(delta);
  return emulator::shuffle(SIAM_EMULATOR_HERE, mask, value,
                           source <= (lane | (width - 1)) ? source : -1);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SIAM_EMULATOR_SITE) {
  emulator::check_width(SIAM_EMULATOR_HERE, width);
  const int lane = emulator::lane_of_this_thread();
  const int source = lane ^ lane_mask;
  return emulator::shuffle(SIAM_EMULATOR_HERE, mask, value,
                           source <= (lane | (width - 1)) ? source : -1);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIAM_EMULATOR_SITE) {
  return static_cast<unsigned>(emulator::warp_collective(
      emulator::Collective::ballot, SIAM_EMULATOR_HERE, mask, predicate != 0, -1));
}
inline int __any_sync(unsigned mask, int predicate, SIAM_EMULATOR_SITE) {
  return static_cast<int>(emulator::warp_collective(emulator::Collective::any, SIAM_EMULATOR_HERE,
                                                    mask, predicate != 0, -1));
}
inline int __all_sync(unsigned mask, int predicate, SIAM_EMULATOR_SITE) {
  return static_cast<int>(emulator::warp_collective(emulator::Collective::all, SIAM_EMULATOR_HERE,
                                                    mask, predicate != 0, -1));
}

// Any set of lanes that happens to run together is legal here; one lane alone is the set that
// breaks code which takes it for "the lanes that took this branch".
inline unsigned __activemask() { return 1u << emulator::machine.current->lane; }

}  // namespace siamcuda
