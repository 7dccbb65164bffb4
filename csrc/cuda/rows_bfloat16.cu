// The row launchers for bfloat16.
#include "cuda/rows.cuh"
#include "math/row_table.h"

#define SIAM_STORAGE math::BFloat16
#include "cuda/rows_typed.inl"
