// The row launchers for float64.
#define SIAM_STORAGE double
#include "cuda/rows_typed.inl"
