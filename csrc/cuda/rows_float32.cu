// The row launchers for float32.
#include "cuda/rows.cuh"
#include "math/row_table.h"

#define SIAM_STORAGE float
#include "cuda/rows_typed.inl"
