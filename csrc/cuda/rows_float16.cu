// The row launchers for float16.
#define SIAM_STORAGE math::Half
#include "cuda/rows_typed.inl"
