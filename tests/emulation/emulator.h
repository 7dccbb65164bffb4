// A host emulator for CUDA kernels: one fiber per thread of a block, blocks one after another.
//
// Kernel text reaches it through csrc/cuda/platform.cuh when compiled with g++ and
// -DSIAM_EMULATED; tests reach it through this header. What a launch checks:
//
//   collectives.h  barriers and warp collectives that not every named thread reaches
//   global.h       accesses outside the registered buffers, misaligned, uninitialised, read-only
//   shared.h       the same for shared memory, behind a proxy that behaves like T*
//   async_copy.h   cp.async, which lands at the wait for its group and not before
//   matrix.h       ldmatrix and mma.sync, collectives of a whole warp
//   shadow.h       data races, found from who wrote what since which barrier, in any schedule
//   statistics.h   sectors per warp request and bank conflicts, per call site
//   launch.h       the limits of grid, block and shared memory
//   log.h          a line per launch for tests in other languages
//
// Every finding is an emulator::Error thrown from the launch, naming file, line, block and thread.
//
//   emulator::Buffer in(x, bytes, emulator::Access::read, "x");
//   emulator::Buffer out(y, bytes, emulator::Access::write, "y");
//   emulator::set_schedule(emulator::Schedule::random(7));
//   SIAM_LAUNCH((my_kernel<float>), grid, block, 0, stream, x, y, n);
#pragma once

#include "emulator/async_copy.h"
#include "emulator/atomics.h"
#include "emulator/collectives.h"
#include "emulator/error.h"
#include "emulator/global.h"
#include "emulator/intrinsics.h"
#include "emulator/launch.h"
#include "emulator/matrix.h"
#include "emulator/memory.h"
#include "emulator/schedule.h"
#include "emulator/shared.h"
#include "emulator/statistics.h"
#include "emulator/vector_types.h"
