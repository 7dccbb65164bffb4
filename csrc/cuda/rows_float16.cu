// The row launchers for float16.
#include "cuda/rows.cuh"
#include "math/row_table.h"

#define SIAM_STORAGE math::Half
#include "cuda/rows_typed.inl"
