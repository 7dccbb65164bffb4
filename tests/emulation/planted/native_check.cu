// Nothing of its own: the build puts every planted/*.cuh in front, so that nvcc sees the same
// kernel text that the emulator runs.
#include "planted.h"
