// The row launchers for float32.
#define SIAM_STORAGE float
#include "cuda/rows_typed.inl"
