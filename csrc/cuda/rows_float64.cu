// The row launchers for float64.
#include "cuda/rows.cuh"
#include "math/row_table.h"

#define SIAM_STORAGE double
#include "cuda/rows_typed.inl"
